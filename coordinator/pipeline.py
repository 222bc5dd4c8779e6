"""Drives sessions through the stages of a route: token ids in at the first stage, token ids out of the last.

Holds one link per node, shared by all sessions. Hidden states flow node to node and never pass here. Knows routes and
frames; nothing of text, HTTP or placement.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from coordinator.opening import openings, read_logprobs
from coordinator.routing import Route, RouteStage
from coordinator.token_pipeline import PipelineLost, TokenRequest
from mesh.errors import MeshError, RequestRefused
from mesh.model.logprobs import TokenLogprobs
from mesh.model.prefill import prefill_chunks
from mesh.wire import stage_pb2, stage_pb2_grpc
from mesh.wire.channel import format_endpoint, open_channel
from mesh.wire.link import Link, LinkClosed
from mesh.wire.tensors import pack_token_ids

logger = logging.getLogger(__name__)

OPEN_TIMEOUT_SECONDS = 10.0  # a stage answers an open at once; only a dead one does not
TOKEN_TIMEOUT_SECONDS = 120.0  # covers the prefill of a long prompt on a slow machine
RETRY_SECONDS = 2  # what a client is told to wait when a stage is full or the route went stale

_Event = stage_pb2.Token | stage_pb2.PromptScores | stage_pb2.SessionFailed
_Told = TypeVar("_Told", stage_pb2.Token, stage_pb2.PromptScores)


class _Session:
    """One session on its route; implements ``token_pipeline.TokenSession``."""

    def __init__(
        self, request: TokenRequest, route: Route, links: list[_NodeLink], return_logits: bool
    ) -> None:
        self.id = uuid.uuid4().hex
        self.epoch = 1
        self.route = route
        self.logits: list[bytes] = []  # one per token, if asked for
        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: list[TokenLogprobs] = []
        self._request, self._links, self._return_logits = request, links, return_logits
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._unopened = len(links)
        self._opened = asyncio.Event()
        self._step_id = 0

    # -- what the links tell us

    def on_opened(self) -> None:
        self._unopened -= 1
        if self._unopened == 0:
            self._opened.set()

    def on_event(self, event: _Event) -> None:
        self._events.put_nowait(event)
        if isinstance(event, stage_pb2.SessionFailed):
            self._opened.set()  # whoever waits for the opening must learn of it

    # -- the life of a session

    async def open(self) -> None:
        """Reserve on every stage. Raises RequestRefused (503); the caller closes in any case."""
        frames = openings(self.id, self.epoch, self._request, self.route, self._return_logits)
        for link, opening in zip(self._links, frames, strict=True):
            link.attach(self)
            link.send(stage_pb2.Frame(open=opening))
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_SECONDS):
                await self._opened.wait()
        except TimeoutError as exc:
            raise _unavailable("a stage did not answer in time", "mesh_incomplete") from exc
        if not self._events.empty():
            failed = self._events.get_nowait()
            assert isinstance(failed, stage_pb2.SessionFailed)
            full = failed.reason == stage_pb2.SessionFailed.NO_CAPACITY
            raise _unavailable(failed.message, "no_capacity" if full else "mesh_incomplete")

    async def tokens(self) -> AsyncIterator[int]:
        """Prefill in chunks that follow each other down the pipe, then one step per token."""
        prompt, max_new_tokens = self._request.prompt_ids, self._request.max_new_tokens
        for chunk in prefill_chunks(len(prompt)):
            ids = prompt[chunk.start : chunk.stop]
            is_last = chunk.stop == len(prompt)
            await self._send_step(ids, position=chunk.start, sample=is_last and max_new_tokens > 0)
        if self._request.prompt_logprobs is not None:
            while len(self.prompt_logprobs) < len(prompt) - 1:
                self._keep_scores(await self._next(stage_pb2.PromptScores))
        masks = None if self._request.grammar is None else self._request.grammar.masks()
        if masks is not None and max_new_tokens:
            self._send_mask(await masks.next(), position=len(prompt))
        for produced in range(1, max_new_tokens + 1):
            token = await self._next(stage_pb2.Token)
            if token.HasField("logprobs"):
                self.logprobs.append(read_logprobs(token.logprobs))
            if self._return_logits:
                self.logits.append(token.logits)
            yield token.token_id
            if produced < max_new_tokens:
                await self._send_step((token.token_id,), position=token.position, sample=True)
                if masks is not None:  # made while the stages compute the step
                    masks.accept(token.token_id)
                    self._send_mask(await masks.next(), position=token.position + 1)

    def close(self) -> None:
        """Free every stage, whatever state the session is in."""
        for link in self._links:
            link.detach(self)
            link.send(stage_pb2.Frame(close=stage_pb2.CloseSession(session=self.id, epoch=self.epoch)))

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
            raise PipelineLost(str(exc)) from exc

    def _keep_scores(self, scores: stage_pb2.PromptScores) -> None:
        if scores.position != len(self.prompt_logprobs) + 1:
            raise PipelineLost(
                f"scores of the prompt from token {scores.position}, expected {len(self.prompt_logprobs) + 1}"
            )
        self.prompt_logprobs.extend(map(read_logprobs, scores.logprobs))

    def _send_mask(self, allowed: bytes, *, position: int) -> None:
        mask = stage_pb2.TokenMask(session=self.id, epoch=self.epoch, position=position, allowed=allowed)
        self._links[-1].send(stage_pb2.Frame(mask=mask))

    async def _next(self, kind: type[_Told]) -> _Told:
        """What the last stage tells next. Raises PipelineLost if that is something else, or nothing."""
        try:
            async with asyncio.timeout(TOKEN_TIMEOUT_SECONDS):
                event = await self._events.get()
        except TimeoutError as exc:
            raise PipelineLost(f"no token for {TOKEN_TIMEOUT_SECONDS:g} s on route {self.route}") from exc
        if isinstance(event, stage_pb2.SessionFailed):
            raise PipelineLost(event.message)
        if not isinstance(event, kind):
            raise PipelineLost(
                f"{self.route.stages[-1].name} told {type(event).__name__}, not {kind.__name__}"
            )
        return event


class _NodeLink:
    """The coordinator's link to one node, and the sessions that use it."""

    def __init__(self, stage: RouteStage, on_closed: Callable[[_NodeLink, bool], None]) -> None:
        self.stage = stage
        self._on_closed = on_closed
        self._sessions: dict[str, _Session] = {}
        self._link: Link | None = None
        self._closing = False
        self._reason = f"{stage.name} was lost"  # why the link ended, unless we learn better
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(), name=f"link {stage.name}")

    async def connected(self) -> None:
        """Raises Unreachable if the node does not answer or is not the one the route means."""
        await asyncio.shield(self._ready)

    def attach(self, session: _Session) -> None:
        self._sessions[session.id] = session

    def detach(self, session: _Session) -> None:
        self._sessions.pop(session.id, None)

    def send(self, frame: stage_pb2.Frame) -> None:
        if self._link is not None:
            self._link.send(frame)

    async def send_steps(self, steps: stage_pb2.Steps) -> None:
        assert self._link is not None
        await self._link.send_steps(steps)

    async def close(self, reason: str) -> None:
        self._reason, self._closing = reason, True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            async with open_channel(format_endpoint(self.stage.host, self.stage.port)) as channel:
                link = Link(stage_pb2_grpc.StageStub(channel).Link(), self.stage.name)
                hello = await link.greet(stage_pb2.Hello(sender="coordinator"))
                layers = (hello.layers.start, hello.layers.stop)
                if hello.incarnation != self.stage.incarnation or layers != (
                    self.stage.layers.start,
                    self.stage.layers.stop,
                ):
                    raise LinkClosed(f"{self.stage.name} is not the stage the route was made for")
                self._link = link
                self._ready.set_result(None)
                await link.run(self._on_frame)
        except MeshError as exc:
            self._reason = str(exc)  # the link speaks of its peer by name
        finally:
            self._on_closed(self, self._closing)
            if not self._ready.done():
                self._ready.set_exception(LinkClosed(self._reason))
                self._ready.exception()  # seen here too: nobody may be waiting
            for session in list(self._sessions.values()):
                session.on_event(
                    stage_pb2.SessionFailed(
                        session=session.id,
                        reason=stage_pb2.SessionFailed.PEER_LOST,
                        message=self._reason,
                        node_id=self.stage.node_id,
                    )
                )

    def _on_frame(self, frame: stage_pb2.Frame) -> None:
        match frame.WhichOneof("kind"):
            case "tokens":
                for token in frame.tokens.tokens:
                    if (session := self._find(token)) is not None:
                        session.on_event(token)
            case "scores":
                if (session := self._find(frame.scores)) is not None:
                    session.on_event(frame.scores)
            case "opened":
                if (session := self._find(frame.opened)) is not None:
                    session.on_opened()
            case "failed":
                if (session := self._find(frame.failed)) is not None:
                    session.on_event(frame.failed)

    def _find(self, about: Any) -> _Session | None:
        """The session a frame speaks of; None for a closed one or an older epoch."""
        session = self._sessions.get(about.session)
        return session if session is not None and session.epoch == about.epoch else None


class Pipeline:
    """Implements ``token_pipeline.TokenPipeline`` over real links.

    ``find_route`` returns the route to use now, or raises RequestRefused if layers are missing; ``on_link_lost`` hears
    of every node whose link could not be opened or broke.
    """

    def __init__(
        self,
        find_route: Callable[[], Route],
        on_link_lost: Callable[[RouteStage], None] = lambda stage: None,
        *,
        return_logits: bool = False,
    ) -> None:
        self._find_route, self._on_link_lost, self._return_logits = find_route, on_link_lost, return_logits
        self._links: dict[RouteStage, _NodeLink] = {}

    @contextlib.asynccontextmanager
    async def session(self, request: TokenRequest, route: Route | None = None) -> AsyncIterator[_Session]:
        route = route or self._find_route()
        links = [self._link_to(stage) for stage in route.stages]
        try:
            await asyncio.gather(*(link.connected() for link in links))
        except LinkClosed as exc:
            raise _unavailable(str(exc), "mesh_incomplete") from exc
        session = _Session(request, route, links, self._return_logits)
        extra = {"session": session.id, "request_id": request.request_id, "route": str(route)}
        try:
            await session.open()
            logger.info("session open", extra=extra)
            yield session
        finally:
            session.close()
            logger.info("session closed", extra=extra)

    async def close(self, reason: str = "the coordinator is stopping") -> None:
        """End every session with that reason, and every link."""
        await asyncio.gather(*(link.close(reason) for link in list(self._links.values())))

    def _link_to(self, stage: RouteStage) -> _NodeLink:
        link = self._links.get(stage)
        if link is None:
            link = self._links[stage] = _NodeLink(stage, self._on_link_closed)
        return link

    def _on_link_closed(self, link: _NodeLink, by_us: bool) -> None:
        if self._links.get(link.stage) is link:
            del self._links[link.stage]
        if not by_us:
            self._on_link_lost(link.stage)


def _unavailable(message: str, code: str) -> RequestRefused:
    return RequestRefused(message, status=503, code=code, retry_after=RETRY_SECONDS)
