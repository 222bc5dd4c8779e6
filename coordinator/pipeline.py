"""Drives sessions through the stages of a route, and through the loss of any of them.

A lost stage ends an attempt, not the answer: the session goes on under a new epoch on another route, which first computes
the prompt and every token given so far. Draws depend on seed and position alone, so what follows is what would have
followed anyway; the client sees a pause. Bounded in number and time, then the loss is told.

Holds one link per node, shared by all sessions. Hidden states flow node to node and never pass here. Knows routes and
frames; nothing of text, HTTP or placement.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence

from coordinator.attempt import Attempt, Given, MaskFeed, StageLost, unavailable
from coordinator.node_link import NodeLink
from coordinator.routing import Route, RouteStage
from coordinator.token_pipeline import PipelineLost, Reroute, TokenRequest
from mesh.errors import RequestRefused
from mesh.model.logprobs import TokenLogprobs
from mesh.wire.link import LinkClosed

logger = logging.getLogger(__name__)

MAX_RECOVERIES = 8  # of one answer; more means that something kills whatever computes it
RECOVERY_SECONDS = (
    30.0  # for one of them: a node that restarts, or that a newcomer takes over from, needs some seconds
)


class RecoveringSession:
    """One answer, on one route after the other; implements ``token_pipeline.TokenSession``."""

    def __init__(
        self, pipeline: Pipeline, request: TokenRequest, reroute: Reroute | None, return_logits: bool
    ) -> None:
        self.id = uuid.uuid4().hex
        self.recoveries = 0
        self._pipeline, self._request, self._reroute = pipeline, request, reroute
        self._return_logits = return_logits
        self._given, self._epoch = Given(), 0
        self._attempt: Attempt | None = None

    @property
    def route(self) -> Route:
        assert self._attempt is not None, "not open"
        return self._attempt.route

    @property
    def logprobs(self) -> Sequence[TokenLogprobs]:
        return self._given.logprobs

    @property
    def prompt_logprobs(self) -> Sequence[TokenLogprobs]:
        return self._given.prompt_logprobs

    @property
    def logits(self) -> Sequence[bytes]:
        """One per token, if asked for."""
        return self._given.logits

    async def open(self, route: Route) -> None:
        """Raises RequestRefused (503); the caller closes in any case."""
        links = [self._pipeline.link_to(stage) for stage in route.stages]
        try:
            await asyncio.gather(*(link.connected() for link in links))
        except LinkClosed as exc:
            raise unavailable(str(exc), "mesh_incomplete") from exc
        self._epoch += 1
        self._attempt = Attempt(
            self.id, self._epoch, self._request, route, links, self._given, self._return_logits
        )
        await self._attempt.open()

    async def tokens(self) -> AsyncIterator[int]:
        grammar = self._request.grammar
        masks = None if grammar is None else MaskFeed(grammar.masks())
        while True:
            assert self._attempt is not None, "not open"
            try:
                async for token_id in self._attempt.tokens(masks):
                    self._given.ids.append(token_id)
                    yield token_id
                return
            except StageLost as exc:
                await self._recover(exc)

    def close(self) -> None:
        if self._attempt is not None:
            self._attempt.close()

    async def _recover(self, loss: StageLost) -> None:
        """Go on elsewhere. Raises the loss where nobody says where, or there is no way."""
        if self._reroute is None or self._pipeline.is_closing or self.recoveries == MAX_RECOVERIES:
            raise loss
        self.recoveries += 1
        self.close()
        began, avoid = time.monotonic(), {loss.node_id} - {""}
        extra = {"session": self.id, "request_id": self._request.request_id}
        logger.warning("stage lost, recovering", extra={**extra, "reason": str(loss)})
        reason: Exception = loss
        try:
            async with asyncio.timeout(RECOVERY_SECONDS):
                while True:
                    route = await self._reroute(frozenset(avoid))
                    try:
                        await self.open(route)
                        break
                    except RequestRefused as exc:
                        reason = exc
                        self.close()
                        await asyncio.sleep(0.1)  # the mesh learns of the loss as we do
        except TimeoutError as exc:
            raise PipelineLost(f"{loss}; no other route within {RECOVERY_SECONDS:g} s ({reason})") from exc
        seconds = round(time.monotonic() - began, 3)
        logger.info("recovered", extra={**extra, "route": str(route), "seconds": seconds})


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
        self._links: dict[RouteStage, NodeLink] = {}
        self.is_closing = False

    @contextlib.asynccontextmanager
    async def session(
        self, request: TokenRequest, route: Route | None = None, reroute: Reroute | None = None
    ) -> AsyncIterator[RecoveringSession]:
        route = route or self._find_route()
        session = RecoveringSession(self, request, reroute, self._return_logits)
        extra = {"session": session.id, "request_id": request.request_id, "route": str(route)}
        try:
            await session.open(route)
            logger.info("session open", extra=extra)
            yield session
        finally:
            session.close()
            logger.info("session closed", extra=extra)

    async def close(self, reason: str = "the coordinator is stopping") -> None:
        """End every session with that reason, and every link."""
        self.is_closing = True
        await asyncio.gather(*(link.close(reason) for link in list(self._links.values())))

    def link_to(self, stage: RouteStage) -> NodeLink:
        link = self._links.get(stage)
        if link is None:
            link = self._links[stage] = NodeLink(stage, self._on_link_closed)
        return link

    def _on_link_closed(self, link: NodeLink, by_us: bool) -> None:
        if self._links.get(link.stage) is link:
            del self._links[link.stage]
        if not by_us:
            self._on_link_lost(link.stage)
