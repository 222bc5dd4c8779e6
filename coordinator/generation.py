"""The story of one answer: encode, admit, open a session, turn tokens into text, tell how it went.

Knows models, sessions and text. Knows nothing of HTTP, of routes' making or of nodes; never logs what was said.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from coordinator.routing import Route
from coordinator.serving import ServedModel
from coordinator.stop_text import StopText
from coordinator.token_pipeline import TokenRequest
from mesh.clock import Clock, SystemClock
from mesh.errors import RequestRefused
from mesh.model.sampling import SamplingParams

logger = logging.getLogger(__name__)

# For a client that does not say how long an answer may be. Every stage reserves KV cache for the whole of it, so
# "as long as the context allows" would let one request fill a node.
DEFAULT_MAX_TOKENS = 1024

Message = Mapping[str, str]  # role, content
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What a client wants, whatever dialect it was said in."""

    request_id: str
    messages: Sequence[Message]
    sampling: SamplingParams
    max_tokens: int | None = None  # None: DEFAULT_MAX_TOKENS, or what the context leaves
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens computed. The completion counts every sampled token, an end-of-sequence token included."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class TextEvent:
    text: str  # whole code points, never empty


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The last event of every generation that did not fail."""

    reason: FinishReason
    usage: Usage
    route: Route
    ttft_seconds: float  # from the request to the first sampled token
    tokens_per_second: float | None  # of decoding, prefill not counted; None for a single token


Event = TextEvent | FinishEvent


async def generate(
    model: ServedModel, request: GenerationRequest, clock: Clock | None = None
) -> AsyncGenerator[Event, None]:
    """Yields TextEvents as text becomes certain, then one FinishEvent.

    Raises RequestRefused before anything is reserved (context) or while the session opens (503), PipelineLost
    later. ``aclose`` (or cancelling) leaves the session, and with it every stage, at once.
    """
    timer = _Timer(clock or SystemClock())
    prompt_ids = await asyncio.to_thread(_encode, model, request.messages)
    max_new_tokens = admit(len(prompt_ids), request.max_tokens, model.context_length)
    answer = _Answer(model, request.stop)
    token_request = TokenRequest(
        request_id=request.request_id,
        prompt_ids=tuple(prompt_ids),
        max_new_tokens=max_new_tokens,
        sampling=request.sampling,
    )
    async with model.pipeline.session(token_request) as session:
        async for token_id in session.tokens():
            timer.token()
            if text := answer.push(token_id):
                yield TextEvent(text)
            if answer.is_stopped:
                break
        route = session.route
    if text := answer.flush():
        yield TextEvent(text)
    finish = FinishEvent(
        reason="stop" if answer.is_stopped else "length",
        usage=Usage(len(prompt_ids), timer.tokens),
        route=route,
        ttft_seconds=timer.ttft_seconds,
        tokens_per_second=timer.tokens_per_second,
    )
    _log(model, request, finish)
    yield finish


def admit(prompt_tokens: int, max_tokens: int | None, context_length: int) -> int:
    """How many tokens may be sampled. Raises RequestRefused where the context is too short.

    The wording is what clients know an overflow by (LiteLLM reads its beginning, LangChain the code).
    """
    limit = f"This model's maximum context length is {context_length} tokens. However, "
    if prompt_tokens >= context_length:
        raise RequestRefused(
            f"{limit}your messages resulted in {prompt_tokens} tokens. (context_length_exceeded)",
            code="context_length_exceeded",
            param="messages",
        )
    room = context_length - prompt_tokens
    if max_tokens is None:
        return min(room, DEFAULT_MAX_TOKENS)
    if max_tokens > room:
        raise RequestRefused(
            f"{limit}you requested {prompt_tokens + max_tokens} tokens ({prompt_tokens} in the messages, "
            f"{max_tokens} in the completion). (context_length_exceeded)",
            code="context_length_exceeded",
            param="max_tokens",
        )
    return max_tokens


def _encode(model: ServedModel, messages: Sequence[Message]) -> list[int]:
    """Runs in a thread: megabytes of text must not stop the event loop. The template writes its own BOS."""
    return model.tokenizer.encode(model.chat_template.render(messages), add_special=False)


class _Answer:
    """Token ids in, text out, until an end-of-sequence token or a stop string."""

    def __init__(self, model: ServedModel, stop: tuple[str, ...]) -> None:
        self._eos_ids = frozenset(model.manifest.config.eos_token_ids)
        self._decoder = model.tokenizer.decoder()
        self._text = StopText(stop)
        self._ended = False

    @property
    def is_stopped(self) -> bool:
        return self._ended or self._text.is_stopped

    def push(self, token_id: int) -> str:
        if token_id in self._eos_ids:
            self._ended = True
            return ""
        return self._text.push(self._decoder.push(token_id))

    def flush(self) -> str:
        """What was held back: the bytes of an unfinished code point, the beginning of no stop string."""
        return self._text.push(self._decoder.flush()) + self._text.flush()


class _Timer:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started = self._first = self._last = clock.monotonic()
        self.tokens = 0

    def token(self) -> None:
        self._last = self._clock.monotonic()
        if self.tokens == 0:
            self._first = self._last
        self.tokens += 1

    @property
    def ttft_seconds(self) -> float:
        return self._first - self._started

    @property
    def tokens_per_second(self) -> float | None:
        seconds = self._last - self._first
        return (self.tokens - 1) / seconds if seconds > 0 else None


def _log(model: ServedModel, request: GenerationRequest, finish: FinishEvent) -> None:
    logger.info(
        "answer finished",
        extra={
            "request_id": request.request_id,
            "model": model.name,
            "finish_reason": finish.reason,
            "prompt_tokens": finish.usage.prompt_tokens,
            "completion_tokens": finish.usage.completion_tokens,
            "ttft_seconds": round(finish.ttft_seconds, 3),
            "route": str(finish.route),
        },
    )
