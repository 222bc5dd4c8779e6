"""Whether an answer is possible now: the mesh as the pipeline and the HTTP side ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from coordinator.access.kv_ledger import KvLedger, Reservation
from coordinator.membership import Membership
from coordinator.routing import ReadyStage, Route, RouteStage, find_route
from mesh.clock import Clock
from mesh.errors import RequestRefused

RETRY_SECONDS = 5  # while layers are missing: a node takes some seconds to join


class Availability:
    """Implements ``admission.Room``: it knows what is free, since every session is opened by this coordinator."""

    def __init__(self, model: str, membership: Membership, clock: Clock) -> None:
        self._model, self._membership, self._clock = model, membership, clock
        self._ledger = KvLedger()
        self._is_stopping = False

    def find_route(self) -> Route:
        """The best route now, nothing reserved. Raises RequestRefused (503) while there is none."""
        if self._is_stopping:
            raise RequestRefused(
                "the coordinator is stopping", status=503, code="draining", retry_after=RETRY_SECONDS
            )
        view = self._membership.view(self._clock.monotonic())
        route = find_route(tuple(self._stages()), view.num_layers)
        if route is None:
            missing = ", ".join(map(str, view.missing))
            raise RequestRefused(
                f"{self._model} cannot answer yet: nobody serves layers {missing}; try again when nodes have joined",
                status=503,
                code="mesh_incomplete",
                retry_after=RETRY_SECONDS,
            )
        return route

    def check(self, tokens: int) -> None:
        """Raises RequestRefused where waiting cannot help: no route, or none that ever holds so many tokens."""
        self.find_route()
        largest = find_route(tuple(self._stages(total=True)), self._membership.num_layers)
        assert largest is not None, "a route exists"
        most = min(self._total(stage) for stage in largest.stages)
        if tokens > most:
            raise RequestRefused(
                f"prompt and answer may take {tokens} tokens; the nodes of {self._model} hold {most} at most: "
                "ask for a shorter answer",
                status=400,
                code="invalid_value",
                param="max_tokens",
            )

    def reserve(self, tokens: int, avoid: frozenset[str] = frozenset()) -> tuple[Route, Reservation] | None:
        """KV cache for so many tokens on every stage of the best route that has it free; None if none has."""
        if self._is_stopping:
            return None
        free = (
            entry
            for entry in self._stages()
            if entry.kv_tokens_free >= tokens and entry.stage.node_id not in avoid
        )
        route = find_route(tuple(free), self._membership.num_layers)
        return None if route is None else (route, self._ledger.reserve(route.stages, tokens))

    def release(self, reservation: Reservation) -> None:
        self._ledger.release(reservation)

    @property
    def is_ready(self) -> bool:
        """Whether a route exists."""
        return self._membership.view(self._clock.monotonic()).route() is not None

    @property
    def num_answers(self) -> int:
        return len(self._ledger)

    def answers_on(self, node_id: str) -> int:
        return self._ledger.sessions_on(node_id)

    def on_link_lost(self, stage: RouteStage) -> None:
        """The next request goes another way, before the lease of a dead node has ended."""
        self._membership.suspect(stage.node_id, stage.incarnation)

    def stop(self) -> None:
        """From now on no request finds a route."""
        self._is_stopping = True

    def _stages(self, *, total: bool = False) -> Iterator[ReadyStage]:
        """What is ready, with the KV cache that our own books say is free there (or all there is)."""
        for node in self._membership.view(self._clock.monotonic()).nodes:
            if (entry := node.ready_stage()) is None:
                continue
            full = self._ledger.sessions(entry.stage) >= node.max_sessions
            free = 0 if full else node.kv_tokens - self._ledger.tokens(entry.stage)
            yield replace(entry, kv_tokens_free=node.kv_tokens if total else free)

    def _total(self, stage: RouteStage) -> int:
        nodes = self._membership.view(self._clock.monotonic()).nodes
        return next(node.kv_tokens for node in nodes if node.node_id == stage.node_id)
