"""A chat completion request, after OpenAI's ``CreateChatCompletionRequest``; what it shares is in ``fields``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from coordinator.api.constraint import Constraint, constraint_of
from coordinator.api.conversation import Conversation, Prepared, conversation_request
from coordinator.api.fields import AnswerFields, Lenient, Text, choice_seed
from coordinator.api.tool_fields import MAX_TOOLS, ToolCallField, ToolField, chat_tools
from coordinator.generation import GenerationRequest
from coordinator.serving import ServedModel
from coordinator.tools.history import Message
from mesh.errors import RequestRefused
from mesh.model.sampling import MAX_TOP_LOGPROBS

SCHEMA_PARAM = "response_format.json_schema.schema"
# What a template is given in any case.
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"})


def _not_reserved(variables: dict[str, Any]) -> dict[str, Any]:
    if taken := _RESERVED.intersection(variables):
        raise ValueError(f"{min(taken)} cannot be replaced")
    return variables


TemplateVariables = Annotated[dict[str, Any], AfterValidator(_not_reserved)]


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
    tool_calls: list[ToolCallField] | None = None
    tool_call_id: Text | None = None
    function_call: Any = None


class JsonSchema(Lenient):
    name: Text | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Lenient):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def to_constraint(self) -> Constraint | None:
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Constraint("schema", {"type": "object"}, "response_format")
        if self.json_schema is None or self.json_schema.schema_ is None:
            raise RequestRefused(f"{SCHEMA_PARAM} is missing", param=SCHEMA_PARAM)
        return Constraint("schema", self.json_schema.schema_, SCHEMA_PARAM)


class ChatRequest(AnswerFields):
    messages: list[ChatMessage]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="The older name; max_completion_tokens wins."
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[ToolField], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = Field(
        None, description="none, auto, required, or the function to call."
    )
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: TemplateVariables | None = Field(
        None, description="Further variables of the model's chat template."
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def to_conversation(self, vocab_size: int) -> Conversation:
        """Raises RequestRefused for what the types cannot say."""
        self.check(vocab_size)
        if self.top_logprobs and not self.logprobs:
            raise RequestRefused("top_logprobs is only allowed when logprobs is true", param="top_logprobs")
        if (self.min_tokens or 0) > (self.most_tokens or self.min_tokens or 0):
            raise RequestRefused("min_tokens is more than max_tokens", param="min_tokens")
        messages = to_messages(self.messages)
        if self.continue_final_message and (
            messages[-1]["role"] != "assistant" or self.add_generation_prompt
        ):
            raise RequestRefused(
                "continue_final_message wants a last message of the assistant, and no add_generation_prompt",
                param="continue_final_message",
            )
        wanted = None if self.response_format is None else self.response_format.to_constraint()
        return Conversation(
            messages,
            chat_tools(self.tools or (), self.tool_choice, self.parallel_tool_calls is not False),
            constraint_of(self, *([] if wanted is None else [wanted])),
            self.chat_template_kwargs or {},
            add_generation_prompt=self.add_generation_prompt is not False,
            is_open=bool(self.continue_final_message),
        )


def to_generation_requests(
    chat: ChatRequest, request_id: str, model: ServedModel, prepared: Prepared
) -> list[GenerationRequest]:
    """One for each choice."""
    top_logprobs = (chat.top_logprobs or 0) if chat.logprobs else None
    first = conversation_request(
        chat, request_id, model, prepared, max_tokens=chat.most_tokens, top_logprobs=top_logprobs
    )
    seeds = [choice_seed(first.sampling.seed, choice) for choice in range(chat.n or 1)]
    return [
        dataclasses.replace(first, sampling=dataclasses.replace(first.sampling, seed=seed), choice=choice)
        for choice, seed in enumerate(seeds)
    ]


def to_messages(messages: list[ChatMessage]) -> list[Message]:
    """As a template reads them. Raises RequestRefused for what it could not."""
    if not messages:
        raise RequestRefused("messages is empty; expected at least one message", param="messages")
    return list(_messages(messages))


def _messages(messages: list[ChatMessage]) -> Iterator[Message]:
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.function_call is not None:
            raise RequestRefused(
                f"{where}: function_call is not supported by this mesh; use tool_calls",
                code="unsupported_parameter",
                param=f"{where}.function_call",
            )
        if message.content is None and message.role != "assistant":
            raise RequestRefused(f"{where}: content is missing", param=f"{where}.content")
        # "developer" is OpenAI's newer name for it; templates know only "system".
        role = "system" if message.role == "developer" else message.role
        told: Message = {"role": role, "content": _text(message.content or [], where)}
        if message.tool_calls:
            if role != "assistant":
                raise RequestRefused(f"{where}: only an assistant calls tools", param=f"{where}.tool_calls")
            told["tool_calls"] = [call.to_json() for call in message.tool_calls]
        if message.tool_call_id is not None:
            told["tool_call_id"] = message.tool_call_id
        yield told


def _text(content: list[ContentPart], where: str) -> str:
    for index, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise RequestRefused(
                f"{where}: content of type {part.type[:40]!r} is not supported; expected text",
                code="unsupported_parameter",
                param=f"{where}.content[{index}]",
            )
    return "\n".join(part.text or "" for part in content)  # as llama.cpp and vLLM join them
