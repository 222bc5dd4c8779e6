"""A chat completion request: which fields are honoured, which refused, which accepted and ignored.

Follows OpenAI's ``CreateChatCompletionRequest``. A field that would change the answer is honoured or refused by
name, never silently dropped; fields that clients send unasked and that change nothing (``user``, ``metadata``,
``store``, ``service_tier``, …), and fields nobody has heard of, are ignored. ``null`` means absent, as it does
there.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from coordinator.generation import GenerationRequest
from mesh.errors import RequestRefused
from mesh.model.sampling import SamplingParams

MAX_STOP_STRINGS = 16  # OpenAI allows 4; agents send more
MAX_STOP_CHARACTERS = 1024

_SEED_BITS = 64

# Not honoured yet: name -> values that ask for nothing. Any other value is refused.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    # The vocabulary of local servers (llama.cpp, vLLM), sent through the client's ``extra_body``.
    "top_k": (0, -1),
    "min_p": (0,),
    "typical_p": (1,),
    "repetition_penalty": (1,),
    "repeat_penalty": (1,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "return_token_ids": (False,),
    "grammar": ("",),
}


def _unicode(text: str) -> str:
    """JSON can spell half a surrogate pair, which no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError("not Unicode text: a surrogate without its other half") from exc
    return text


def _as_parts(content: object) -> object:
    """OpenAI's short form of content; told apart here, so that an error names a part, not a branch of a union."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


Text = Annotated[str, AfterValidator(_unicode)]
StopString = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class _Lenient(BaseModel):
    """Ignores unknown fields but not wrong types: ``"temperature": "hot"`` is an error, not a guess."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class ContentPart(_Lenient):
    type: str
    text: Text | None = None


class ChatMessage(_Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        list[ContentPart] | None,
        BeforeValidator(_as_parts, json_schema_input_type=str | list[ContentPart] | None),
    ] = None  # an assistant that said nothing
    tool_calls: list[Any] | None = None
    function_call: Any = None


class StreamOptions(_Lenient):
    include_usage: bool | None = None


class ChatRequest(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: Text
    messages: list[ChatMessage]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="The older name; max_completion_tokens wins."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << _SEED_BITS)] | None = Field(
        None, description="The same seed, request and system_fingerprint give the same answer."
    )
    stop: Annotated[
        Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None,
        BeforeValidator(_as_list, json_schema_input_type=str | list[str] | None),
    ] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def to_generation_request(chat: ChatRequest, request_id: str) -> GenerationRequest:
    """Raises RequestRefused for what the types cannot say."""
    _refuse_unsupported(chat)
    if chat.stream_options is not None and not chat.stream:
        raise RequestRefused("stream_options is only allowed when stream is true", param="stream_options")
    if not chat.messages:
        raise RequestRefused("messages is empty; expected at least one message", param="messages")
    # SamplingParams counts seeds without a sign; a client's -1 is a seed like any other.
    seed = secrets.randbits(_SEED_BITS) if chat.seed is None else chat.seed % (1 << _SEED_BITS)
    return GenerationRequest(
        request_id=request_id,
        messages=list(_messages(chat.messages)),
        sampling=SamplingParams(
            temperature=1.0 if chat.temperature is None else chat.temperature,
            top_p=1.0 if chat.top_p is None else chat.top_p,
            seed=seed,
        ),
        max_tokens=chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens,
        stop=tuple(chat.stop or ()),
    )


def _refuse_unsupported(chat: ChatRequest) -> None:
    for name, value in (chat.model_extra or {}).items():
        if name in _UNSUPPORTED and value is not None and value not in _UNSUPPORTED[name]:
            raise RequestRefused(
                f"{name} is not supported by this mesh yet; leave it out",
                code="unsupported_parameter",
                param=name,
            )


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
