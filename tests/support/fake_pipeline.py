"""A token pipeline without a mesh: scripted ids, doors that open when the test says so, sessions that are counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from coordinator.access.kv_ledger import KvLedger, Reservation
from coordinator.routing import Route, RouteStage
from coordinator.token_pipeline import Reroute, TokenRequest, TokenSession
from mesh.errors import MeshError, RequestRefused
from mesh.layers import LayerRange
from mesh.model.logprobs import TokenLogprobs


def fake_route(*cuts: int) -> Route:
    """``fake_route(0, 2, 4)``: layers 0:2 at node-a, 2:4 at node-b."""
    return Route(
        tuple(
            RouteStage(
                node_id=f"id-{letter}",
                name=f"node-{letter}",
                host="127.0.0.1",
                port=7000 + index,
                layers=LayerRange(start, stop),
                incarnation=index + 1,
            )
            for index, (start, stop, letter) in enumerate(zip(cuts, cuts[1:], "abcdefgh", strict=False))
        )
    )


class FakePipeline:
    """Yields ``script`` to every session, at most as many ids as were asked for.

    ``refusal`` is raised while a session opens; ``failure`` instead of token number ``fail_at``. Before token number
    ``park_at`` a session waits until ``resume`` is set, and sets ``parked`` to say so.
    """

    def __init__(
        self,
        script: Sequence[int],
        *,
        refusal: Exception | None = None,
        failure: Exception | None = None,
        fail_at: int = 0,
        park_at: int | None = None,
        before_token: Callable[[], None] = lambda: None,
    ) -> None:
        self.script = list(script)
        self.refusal, self.failure, self.fail_at = refusal, failure, fail_at
        self.park_at, self.before_token = park_at, before_token
        self.route = fake_route(0, 2, 4)
        self.requests: list[TokenRequest] = []
        self.open_sessions = 0
        self.tokens_given = 0
        self.parked, self.resume, self.left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def session(
        self, request: TokenRequest, route: Route | None = None, reroute: Reroute | None = None
    ) -> AsyncIterator[TokenSession]:
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal
        self.open_sessions += 1
        try:
            yield _FakeSession(self, request)
        finally:
            self.open_sessions -= 1
            self.left.set()


class _FakeSession:
    recoveries = 0

    def __init__(self, pipeline: FakePipeline, request: TokenRequest) -> None:
        self.route = pipeline.route
        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: list[TokenLogprobs] = []
        self._pipeline, self._request = pipeline, request

    async def tokens(self) -> AsyncIterator[int]:
        pipeline, request = self._pipeline, self._request
        if request.prompt_logprobs is not None:
            self.prompt_logprobs += [
                scripted_logprobs(i, request.prompt_logprobs) for i in request.prompt_ids[1:]
            ]
        for number, token_id in enumerate(pipeline.script[: self._request.max_new_tokens]):
            if number == pipeline.park_at:
                pipeline.parked.set()
                await pipeline.resume.wait()
            if number == pipeline.fail_at and pipeline.failure is not None:
                raise pipeline.failure
            pipeline.before_token()
            pipeline.tokens_given += 1
            if (top := request.sampling.top_logprobs) is not None:
                self.logprobs.append(scripted_logprobs(token_id, top))
            yield token_id


def scripted_logprobs(token_id: int, top: int) -> TokenLogprobs:
    """Of a model to which the token, then the ids after it, are the likeliest."""
    return TokenLogprobs(-0.5, tuple((token_id + place, -0.5 - place) for place in range(top)))


def refused(error: MeshError) -> FakePipeline:
    """A pipeline that opens no session."""
    return FakePipeline((), refusal=error)


class FakeRoom:
    """An ``admission.Room`` of ``tokens`` (unbounded by default); ``hopeless`` is raised by every check."""

    def __init__(self, tokens: int | None = None, route: Route | None = None) -> None:
        self.tokens, self.route = tokens, route or fake_route(0, 2, 4)
        self.ledger, self.most_reserved = KvLedger(), 0
        self.hopeless: RequestRefused | None = None

    def check(self, tokens: int) -> None:
        if self.hopeless is not None:
            raise self.hopeless

    def reserve(self, tokens: int, avoid: frozenset[str] = frozenset()) -> tuple[Route, Reservation] | None:
        used = self.ledger.tokens(self.route.stages[0])
        if self.tokens is not None and used + tokens > self.tokens:
            return None
        self.most_reserved = max(self.most_reserved, used + tokens)
        return self.route, self.ledger.reserve(self.route.stages, tokens)

    def release(self, reservation: Reservation) -> None:
        self.ledger.release(reservation)
