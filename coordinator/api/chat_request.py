"""A chat completion request, after OpenAI's ``CreateChatCompletionRequest``; what it shares is in ``fields``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from coordinator.api.fields import AnswerFields, Lenient, Text, choice_seed
from coordinator.generation import Chat, GenerationRequest
from coordinator.token_pipeline import MaskSource
from mesh.errors import RequestRefused
from mesh.model.sampling import MAX_TOP_LOGPROBS

SCHEMA_PARAM = "response_format.json_schema.schema"


def _as_parts(content: object) -> object:
    """OpenAI's short form of content; told apart here, so that an error names a part, not a branch of a union."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class ContentPart(Lenient):
    type: str
    text: Text | None = None


class ChatMessage(Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        list[ContentPart] | None,
        BeforeValidator(_as_parts, json_schema_input_type=str | list[ContentPart] | None),
    ] = None  # an assistant that said nothing
    tool_calls: list[Any] | None = None
    function_call: Any = None


class JsonSchema(Lenient):
    name: Text | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Lenient):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(AnswerFields):
    messages: list[ChatMessage]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="The older name; max_completion_tokens wins."
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None

    def schema_to_follow(self) -> dict[str, Any] | None:
        """Of the answer; None for plain text. Raises RequestRefused if it is missing."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        if self.ignore_eos:
            raise RequestRefused(
                "ignore_eos with a response_format: such an answer has an end", param="ignore_eos"
            )
        if wanted.type == "json_object":
            return {"type": "object"}
        if wanted.json_schema is None or wanted.json_schema.schema_ is None:
            raise RequestRefused("response_format.json_schema.schema is missing", param=SCHEMA_PARAM)
        return wanted.json_schema.schema_


def to_generation_requests(
    chat: ChatRequest, request_id: str, vocab_size: int, grammar: MaskSource | None = None
) -> list[GenerationRequest]:
    """One for each choice. Raises RequestRefused for what the types cannot say."""
    chat.check(vocab_size)
    if chat.top_logprobs and not chat.logprobs:
        raise RequestRefused("top_logprobs is only allowed when logprobs is true", param="top_logprobs")
    prompt = Chat(to_messages(chat.messages))
    sampling = chat.sampling((chat.top_logprobs or 0) if chat.logprobs else None)
    return [
        GenerationRequest(
            request_id=request_id,
            prompt=prompt,
            sampling=dataclasses.replace(sampling, seed=choice_seed(sampling.seed, choice)),
            max_tokens=chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens,
            stop=tuple(chat.stop or ()),
            stop_ids=frozenset(chat.stop_token_ids or ()),
            ignore_eos=bool(chat.ignore_eos),
            grammar=grammar,
            choice=choice,
        )
        for choice in range(chat.n or 1)
    ]


def to_messages(messages: list[ChatMessage]) -> list[dict[str, str]]:
    """As a template reads them. Raises RequestRefused for what it could not."""
    if not messages:
        raise RequestRefused("messages is empty; expected at least one message", param="messages")
    return list(_messages(messages))


def _messages(messages: list[ChatMessage]) -> Iterator[dict[str, str]]:
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.tool_calls or message.function_call is not None:
            raise RequestRefused(
                f"{where}: tool calls are not supported by this mesh yet",
                code="unsupported_parameter",
                param=f"{where}.tool_calls",
            )
        if message.content is None and message.role != "assistant":
            raise RequestRefused(f"{where}: content is missing", param=f"{where}.content")
        # "developer" is OpenAI's newer name for it; templates know only "system".
        role = "system" if message.role == "developer" else message.role
        yield {"role": role, "content": _text(message.content or [], where)}


def _text(content: list[ContentPart], where: str) -> str:
    for index, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise RequestRefused(
                f"{where}: content of type {part.type[:40]!r} is not supported; expected text",
                code="unsupported_parameter",
                param=f"{where}.content[{index}]",
            )
    return "\n".join(part.text or "" for part in content)  # as llama.cpp and vLLM join them
