"""The story of one answer: encode, admit, open a session, turn tokens into text, tell how it went.

Knows models, sessions and text. Knows nothing of HTTP, of routes' making or of nodes; never logs what was said.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from coordinator.access.callers import Caller
from coordinator.routing import Route
from coordinator.serving import ServedModel
from coordinator.stop_text import StopText
from coordinator.token_pipeline import MaskSource, TokenRequest, TokenSession
from mesh.clock import Clock, SystemClock
from mesh.errors import RequestRefused
from mesh.model.logprobs import TokenLogprobs
from mesh.model.sampling import SamplingParams

logger = logging.getLogger(__name__)

# For a client that does not say how long an answer may be. Every stage reserves KV cache for the whole of it, so
# "as long as the context allows" would let one request fill a node.
DEFAULT_MAX_TOKENS = 1024

# Of one client's request, the rest waits for its turn: many prompts in one body must not fill every stage.
SESSIONS_AT_ONCE = 8

Message = Mapping[str, Any]  # role, content, and what a template knows besides
FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, which the model's own template turns into a prompt."""

    messages: Sequence[Message]


TokenIds = tuple[int, ...]
Prompt = Chat | str | TokenIds


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer that a client wants, whatever dialect it was said in."""

    request_id: str
    prompt: Prompt
    sampling: SamplingParams
    max_tokens: int | None = None  # None: DEFAULT_MAX_TOKENS, or what the context leaves; 0: the prompt alone
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()  # end the answer as an end-of-sequence token does
    ignore_eos: bool = False
    min_tokens: int = 0  # before which nothing ends the answer
    is_shortened: bool = False  # max_tokens is cut to what the context leaves, instead of refused
    prompt_param: str = ""  # what the client calls the prompt; "messages" of a Chat, else "prompt"
    shown: frozenset[int] = frozenset()  # special tokens that leave their names in the text
    tell_ids: bool = False  # in the TextEvents
    echo: bool = False  # begin with a PromptEvent
    prompt_logprobs: int | None = None  # in the PromptEvent, with so many likeliest tokens at each place
    grammar: MaskSource | None = None  # that the answer must follow
    choice: int = 0  # which of the answers to a client's request this is


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens computed. The completion counts every sampled token, an end-of-sequence token included."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class ScoredToken:
    token_id: int
    logprobs: TokenLogprobs
    is_end: bool = False  # it ended the answer and has no text


@dataclass(frozen=True, slots=True)
class PromptEvent:
    """What was asked, before anything that was answered; only if ``echo``."""

    ids: TokenIds
    logprobs: tuple[TokenLogprobs, ...]  # from the second token on; empty if not asked for
    choice: int = 0


@dataclass(frozen=True, slots=True)
class TextEvent:
    text: str  # whole code points; empty only where ``tokens`` have none
    tokens: tuple[ScoredToken, ...] = ()  # if asked for: those sampled since the event before
    choice: int = 0
    ids: TokenIds = ()  # if asked for: of all tokens sampled since the event before


@dataclass(frozen=True, slots=True)
class CallEvent:
    """A tool call begins (``id`` and ``name`` are there), or goes on with more of its arguments."""

    index: int  # of this answer's calls
    arguments: str = ""  # JSON text, perhaps a part
    id: str | None = None
    name: str | None = None
    choice: int = 0


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The last event of every generation that did not fail."""

    reason: FinishReason
    usage: Usage
    route: Route
    ttft_seconds: float  # from the request to the first sampled token
    tokens_per_second: float | None  # of decoding, prefill not counted; None for a single token
    recoveries: int = 0  # stages that were lost on the way and replaced
    choice: int = 0
    stop_string: str | None = None  # that ended the answer
    fills_context: bool = False  # "length" is the context's, not the client's


Event = PromptEvent | TextEvent | CallEvent | FinishEvent


class ContextExceeded(RequestRefused):
    """More tokens than the context holds.

    The wording is what clients know an overflow by (LiteLLM reads its beginning, LangChain the code).
    """

    def __init__(self, told: str, *, param: str, tokens: int, limit: int) -> None:
        super().__init__(
            f"This model's maximum context length is {limit} tokens. However, {told}. (context_length_exceeded)",
            code="context_length_exceeded",
            param=param,
        )
        self.tokens, self.limit = tokens, limit


async def generate(
    model: ServedModel, request: GenerationRequest, caller: Caller, clock: Clock | None = None
) -> AsyncGenerator[Event, None]:
    """Yields a PromptEvent if asked for, TextEvents as text becomes certain, then one FinishEvent.

    Raises RequestRefused before anything is reserved (context, the caller's quota) or while it waits for its turn
    and the session opens (503), PipelineLost later. ``aclose`` (or cancelling) leaves the queue or the session, and
    with it every stage, at once.
    """
    timer = _Timer(clock or SystemClock())
    prompt_ids = await asyncio.to_thread(encode, model, request.prompt)
    where = request.prompt_param or ("messages" if isinstance(request.prompt, Chat) else "prompt")
    room, wanted = model.context_length - len(prompt_ids), request.max_tokens
    if is_cut := request.is_shortened and wanted is not None and 0 < room < wanted:
        wanted = room
    max_new_tokens = admit(len(prompt_ids), wanted, model.context_length, where)
    answer = _Answer(model, request)
    token_request = TokenRequest(
        request_id=request.request_id,
        prompt_ids=prompt_ids,
        max_new_tokens=max_new_tokens,
        sampling=request.sampling,
        # Without an answer the scores alone say that the prompt was computed.
        prompt_logprobs=request.prompt_logprobs if max_new_tokens else request.prompt_logprobs or 0,
        grammar=request.grammar,
    )
    is_scored = request.sampling.top_logprobs is not None
    is_echoed = not request.echo
    async with (
        model.admission.turn(caller, len(prompt_ids) + max_new_tokens) as turn,
        model.pipeline.session(token_request, turn.route, turn.reroute) as session,
    ):
        turn.used_tokens = len(prompt_ids)
        async for token_id in session.tokens():
            timer.token()
            turn.used_tokens += 1
            if not is_echoed:
                yield _prompt_event(request, prompt_ids, session)
                is_echoed = True
            if event := answer.push(token_id, session.logprobs[-1] if is_scored else None):
                yield event
            if answer.is_stopped:
                break
        if not is_echoed:
            yield _prompt_event(request, prompt_ids, session)
        route, recoveries = session.route, session.recoveries
    if event := answer.flush():
        yield event
    finish = FinishEvent(
        reason="stop" if answer.is_stopped else "length",
        usage=Usage(len(prompt_ids), timer.tokens),
        route=route,
        ttft_seconds=timer.ttft_seconds,
        tokens_per_second=timer.tokens_per_second,
        recoveries=recoveries,
        choice=request.choice,
        stop_string=answer.stop_string,
        fills_context=is_cut,
    )
    _log(model, request, finish)
    yield finish


async def generate_all(
    model: ServedModel,
    requests: Sequence[GenerationRequest],
    caller: Caller,
    at_once: int = SESSIONS_AT_ONCE,
) -> AsyncGenerator[Event, None]:
    """The events of several answers as they come, each answer in a session of its own, ``at_once`` at a time.

    Raises what ended the first answer that failed; like ``aclose`` that leaves every session.
    """
    if len(requests) == 1:
        async with aclosing(generate(model, requests[0], caller)) as events:
            async for event in events:
                yield event
        return
    turn = asyncio.Semaphore(at_once)
    arrived: asyncio.Queue[Event | None] = asyncio.Queue()  # None: no more will come

    async def run(request: GenerationRequest) -> None:
        async with turn, aclosing(generate(model, request, caller)) as events:
            async for event in events:
                arrived.put_nowait(event)

    running = [asyncio.create_task(run(request)) for request in requests]
    ended = asyncio.gather(*running)  # with the last answer, or the first failure
    ended.add_done_callback(lambda _: arrived.put_nowait(None))
    try:
        while (event_or_end := await arrived.get()) is not None:
            yield event_or_end
        ended.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        await asyncio.gather(ended, return_exceptions=True)


def admit(prompt_tokens: int, max_tokens: int | None, context_length: int, where: str = "messages") -> int:
    """How many tokens may be sampled. Raises ContextExceeded where the context is too short."""
    if prompt_tokens == 0:
        raise RequestRefused(f"{where}: no token to begin with", param=where)
    if prompt_tokens > context_length or (prompt_tokens == context_length and max_tokens != 0):
        told = f"your {where} resulted in {prompt_tokens} tokens"
        raise ContextExceeded(told, param=where, tokens=prompt_tokens, limit=context_length)
    room = context_length - prompt_tokens
    if max_tokens is None:
        return min(room, DEFAULT_MAX_TOKENS)
    if max_tokens > room:
        tokens = prompt_tokens + max_tokens
        told = (
            f"you requested {tokens} tokens ({prompt_tokens} in the {where}, {max_tokens} in the completion)"
        )
        raise ContextExceeded(told, param="max_tokens", tokens=tokens, limit=context_length)
    return max_tokens


def encode(model: ServedModel, prompt: Prompt) -> TokenIds:
    """Runs in a thread: megabytes of text must not stop the event loop.

    A template writes its own BOS; before plain text the tokenizer puts what the model was trained with.
    """
    match prompt:
        case Chat():
            return tuple(
                model.tokenizer.encode(model.chat_template.render(prompt.messages), add_special=False)
            )
        case str():
            return tuple(model.tokenizer.encode(prompt))
        case _:
            return prompt


def _prompt_event(request: GenerationRequest, ids: TokenIds, session: TokenSession) -> PromptEvent:
    logprobs = () if request.prompt_logprobs is None else tuple(session.prompt_logprobs)
    return PromptEvent(ids, logprobs, request.choice)


class _Answer:
    """Token ids in, text out, until an end-of-sequence token or a stop string."""

    def __init__(self, model: ServedModel, request: GenerationRequest) -> None:
        eos_ids = () if request.ignore_eos else model.manifest.config.eos_token_ids
        self._end_ids = request.stop_ids.union(eos_ids)
        self._tokenizer, self._shown_ids = model.tokenizer, request.shown
        self._decoder = model.tokenizer.decoder()
        self._text = StopText(request.stop)
        self._choice = request.choice
        self._left = request.min_tokens  # that must come before a stop string counts
        self._untold: list[ScoredToken] = []  # sampled, their text not yet certain
        self._tells_ids = request.tell_ids
        self._untold_ids: list[int] = []
        self._ended = False

    @property
    def is_stopped(self) -> bool:
        return self._ended or self._text.is_stopped

    @property
    def stop_string(self) -> str | None:
        return self._text.stopped_by

    def push(self, token_id: int, logprobs: TokenLogprobs | None = None) -> TextEvent | None:
        """The text that this token makes certain, if any."""
        self._left -= 1
        self._ended = token_id in self._end_ids
        if logprobs is not None:
            self._untold.append(ScoredToken(token_id, logprobs, is_end=self._ended))
        if self._tells_ids:
            self._untold_ids.append(token_id)
        text = "" if self._ended else self._checked(self._decoded(token_id))
        return self._event(text) if text else None

    def flush(self) -> TextEvent | None:
        """What was held back: the bytes of an unfinished code point, the beginning of no stop string."""
        text = self._checked(self._decoder.flush()) + self._text.flush()
        return self._event(text) if text or self._untold or self._untold_ids else None

    def _decoded(self, token_id: int) -> str:
        if token_id not in self._shown_ids:
            return self._decoder.push(token_id)
        return self._decoder.flush() + (self._tokenizer.token(token_id) or "")

    def _checked(self, text: str) -> str:
        """Up to a stop string."""
        return text if self._left > 0 else self._text.push(text)

    def _event(self, text: str) -> TextEvent:
        tokens, self._untold = tuple(self._untold), []
        ids, self._untold_ids = tuple(self._untold_ids), []
        return TextEvent(text, tokens, self._choice, ids)


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
            "recoveries": finish.recoveries,
        },
    )
