"""One attempt at an answer: a session on every stage of one route, from the prompt and what is already known of the answer.

Token ids in at the first stage, token ids out of the last. An attempt ends with its answer or with ``StageLost``; the next
one, on another route, goes on where it ended, since it begins with every token that was given so far.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from coordinator.node_link import NodeLink, Told
from coordinator.opening import openings, read_logprobs
from coordinator.routing import Route
from coordinator.token_pipeline import PipelineLost, TokenMasks, TokenRequest
from mesh.errors import RequestRefused
from mesh.model.logprobs import TokenLogprobs
from mesh.model.prefill import prefill_chunks
from mesh.wire import stage_pb2
from mesh.wire.link import LinkClosed
from mesh.wire.tensors import pack_token_ids

OPEN_TIMEOUT_SECONDS = 10.0  # a stage answers an open at once; only a dead one does not
TOKEN_TIMEOUT_SECONDS = 120.0  # covers the prefill of a long prompt on a slow machine
RETRY_SECONDS = 2  # what a client is told to wait when a stage is full or the route went stale

# Of these, another route can be tried; the others would come again.
_ELSEWHERE = frozenset(
    {
        stage_pb2.SessionFailed.PEER_LOST,
        stage_pb2.SessionFailed.STALE_ROUTE,
        stage_pb2.SessionFailed.NO_CAPACITY,
    }
)

T = TypeVar("T", stage_pb2.Token, stage_pb2.PromptScores)


class StageLost(PipelineLost):
    """A stage of the route is gone or will not go on. ``node_id`` says which, if that is known."""

    def __init__(self, message: str, node_id: str = "") -> None:
        super().__init__(message)
        self.node_id = node_id


@dataclass(slots=True)
class Given:
    """What is known of an answer, whatever route it came by; it grows and is never taken back."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # one for each id, if asked for
    logits: list[bytes] = field(default_factory=list)  # likewise
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # from the second token on


class MaskFeed:
    """The masks of a grammar, told every token exactly once, also where an attempt begins in the middle."""

    def __init__(self, masks: TokenMasks) -> None:
        self._masks, self._accepted = masks, 0

    async def after(self, ids: Sequence[int]) -> bytes:
        for token_id in ids[self._accepted :]:
            self._masks.accept(token_id)
        self._accepted = len(ids)
        return await self._masks.next()


class Attempt:
    """Open it, take its tokens, close it in any case."""

    def __init__(
        self,
        session_id: str,
        epoch: int,
        request: TokenRequest,
        route: Route,
        links: list[NodeLink],
        given: Given,
        return_logits: bool,
    ) -> None:
        self.id, self.epoch, self.route = session_id, epoch, route
        self._request, self._links, self._given, self._return_logits = request, links, given, return_logits
        self._events: asyncio.Queue[Told] = asyncio.Queue()
        self._unopened = len(links)
        self._opened = asyncio.Event()
        self._step_id = 0

    # -- what the links tell us

    def on_opened(self) -> None:
        self._unopened -= 1
        if self._unopened == 0:
            self._opened.set()

    def on_event(self, event: Told) -> None:
        self._events.put_nowait(event)
        if isinstance(event, stage_pb2.SessionFailed):
            self._opened.set()  # whoever waits for the opening must learn of it

    # -- the life of an attempt

    async def open(self) -> None:
        """Reserve on every stage. Raises RequestRefused (503)."""
        frames = openings(
            self.id,
            self.epoch,
            self._request,
            self.route,
            self._return_logits,
            given_ids=self._given.ids,
            is_prompt_scored=not self._is_prompt_unscored,
        )
        for link, opening in zip(self._links, frames, strict=True):
            link.attach(self)
            link.send(stage_pb2.Frame(open=opening))
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_SECONDS):
                await self._opened.wait()
        except TimeoutError as exc:
            raise unavailable("a stage did not answer in time", "mesh_incomplete") from exc
        if not self._events.empty():
            failed = self._events.get_nowait()
            assert isinstance(failed, stage_pb2.SessionFailed)
            full = failed.reason == stage_pb2.SessionFailed.NO_CAPACITY
            raise unavailable(failed.message, "no_capacity" if full else "mesh_incomplete")

    async def tokens(self, masks: MaskFeed | None) -> AsyncIterator[int]:
        """The rest of the answer: prefill in chunks that follow each other down the pipe, then one step per token.

        Whoever takes a token puts it into ``given`` before asking for the next. Raises StageLost, PipelineLost.
        """
        known = (*self._request.prompt_ids, *self._given.ids)
        left = self._request.max_new_tokens - len(self._given.ids)
        for chunk in prefill_chunks(len(known)):
            is_last = chunk.stop == len(known)
            ids = known[chunk.start : chunk.stop]
            await self._send_step(ids, position=chunk.start, sample=is_last and left > 0)
        if (
            masks is not None and left
        ):  # before the scores: the last of them come with the draw that waits for it
            self._send_mask(await masks.after(self._given.ids), position=len(known))
        await self._collect_scores()
        for produced in range(1, left + 1):
            token = await self._next(stage_pb2.Token)
            if token.HasField("logprobs"):
                self._given.logprobs.append(read_logprobs(token.logprobs))
            if self._return_logits:
                self._given.logits.append(token.logits)
            yield token.token_id
            if produced < left:
                await self._send_step((token.token_id,), position=token.position, sample=True)
                if masks is not None:  # made while the stages compute the step
                    self._send_mask(await masks.after(self._given.ids), position=token.position + 1)

    def close(self) -> None:
        """Free every stage, whatever state the session is in."""
        for link in self._links:
            link.detach(self)
            link.send(stage_pb2.Frame(close=stage_pb2.CloseSession(session=self.id, epoch=self.epoch)))

    @property
    def _is_prompt_unscored(self) -> bool:
        return (
            self._request.prompt_logprobs is not None
            and len(self._given.prompt_logprobs) < len(self._request.prompt_ids) - 1
        )

    async def _collect_scores(self) -> None:
        if not self._is_prompt_unscored:
            return
        self._given.prompt_logprobs.clear()  # of an attempt that ended in the middle of them
        while self._is_prompt_unscored:
            scores = await self._next(stage_pb2.PromptScores)
            expected = len(self._given.prompt_logprobs) + 1
            if scores.position != expected:
                raise PipelineLost(f"scores of the prompt from token {scores.position}, expected {expected}")
            self._given.prompt_logprobs.extend(map(read_logprobs, scores.logprobs))

    async def _send_step(self, ids: tuple[int, ...], *, position: int, sample: bool) -> None:
        self._step_id += 1
        step = stage_pb2.Step(
            session=self.id,
            epoch=self.epoch,
            step_id=self._step_id,
            position=position,
            sample=sample,
            token_ids=ids,
        )
        try:
            await self._links[0].send_steps(pack_token_ids(step))
        except LinkClosed as exc:
            raise StageLost(str(exc), self.route.stages[0].node_id) from exc

    def _send_mask(self, allowed: bytes, *, position: int) -> None:
        mask = stage_pb2.TokenMask(session=self.id, epoch=self.epoch, position=position, allowed=allowed)
        self._links[-1].send(stage_pb2.Frame(mask=mask))

    async def _next(self, kind: type[T]) -> T:
        """What the last stage tells next. Raises StageLost or PipelineLost if that is something else, or nothing."""
        try:
            async with asyncio.timeout(TOKEN_TIMEOUT_SECONDS):
                event = await self._events.get()
        except TimeoutError as exc:
            raise StageLost(f"no token for {TOKEN_TIMEOUT_SECONDS:g} s on route {self.route}") from exc
        if isinstance(event, stage_pb2.SessionFailed):
            if event.reason in _ELSEWHERE:
                raise StageLost(event.message, event.lost_node_id)
            raise PipelineLost(event.message)
        if not isinstance(event, kind):
            raise PipelineLost(
                f"{self.route.stages[-1].name} told {type(event).__name__}, not {kind.__name__}"
            )
        return event


def unavailable(message: str, code: str) -> RequestRefused:
    return RequestRefused(message, status=503, code=code, retry_after=RETRY_SECONDS)
