"""The door of one model: an answer begins when it is its key's turn and its KV cache is reserved on every stage.

    async with admission.turn(caller, tokens) as turn:
        async with pipeline.session(request, turn.route) as session: ...
        turn.used_tokens = …

Leaving gives everything back. Waiting costs nothing but a place in a bounded queue; cancelling leaves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from coordinator.access.callers import Caller, refusal
from coordinator.access.fair_queue import FairQueue, Ticket
from coordinator.access.kv_ledger import Reservation
from coordinator.routing import Route
from mesh.clock import Clock, SystemClock
from mesh.errors import RequestRefused

MAX_WAITING = 512
MAX_WAITING_PER_KEY = 256  # one key alone never fills the queue
WAIT_SECONDS = 60.0  # then the mesh is too small for what is asked of it
RETRY_SECONDS = 5
REROUTE_SECONDS = 0.05  # between looks for another route while an answer stands still
_LOOKS_ELSEWHERE = 40
LOOK_AGAIN_SECONDS = 0.25  # a node that has joined makes room without telling the queue


Reserved = tuple[Route, Reservation]


class Room(Protocol):
    """Where answers are computed, as far as the door knows."""

    def check(self, tokens: int) -> None:
        """Raises RequestRefused where waiting cannot help: layers are missing, or no node is large enough."""

    def reserve(self, tokens: int, avoid: frozenset[str] = frozenset()) -> Reserved | None:
        """KV cache for so many tokens on every stage of a route past the nodes to avoid; None if none is free now."""

    def release(self, reservation: Reservation) -> None: ...


class Turn:
    """A reservation, which moves when a stage of its route is lost."""

    def __init__(self, room: Room, tokens: int, reserved: Reserved) -> None:
        self._room, self._tokens = room, tokens
        self.route, self._reservation = reserved
        self.used_tokens = 0  # of those asked for, what was computed: the rest of a token quota is given back

    async def reroute(self, avoid: frozenset[str]) -> Route:
        """Another route with as much KV cache, as soon as there is one; past nobody's turn, it was ours already.

        The nodes to avoid are taken after a while if there is no other way: one that was restarted is as good as new.
        """
        self._room.release(self._reservation)
        looks = 0
        while True:
            found = self._room.reserve(self._tokens, avoid if looks < _LOOKS_ELSEWHERE else frozenset())
            if found is not None:
                self.route, self._reservation = found
                return self.route
            looks += 1
            await asyncio.sleep(REROUTE_SECONDS)

    def leave(self) -> None:
        self._room.release(self._reservation)


class Admission:
    def __init__(
        self,
        room: Room,
        clock: Clock | None = None,
        *,
        max_waiting: int = MAX_WAITING,
        max_waiting_per_key: int = MAX_WAITING_PER_KEY,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._room, self._clock, self._wait_seconds = room, clock or SystemClock(), wait_seconds
        self._queue = FairQueue(max_waiting, max_waiting_per_key)
        self._waiting: dict[Ticket, _Waiting] = {}
        self._next_look: asyncio.TimerHandle | None = None

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    @asynccontextmanager
    async def turn(self, caller: Caller, tokens: int) -> AsyncIterator[Turn]:
        """Raises RequestRefused: 429 where the key has had its share, 503 where the mesh is full or incomplete."""
        meter = caller.meter
        _check_kv_limit(caller, tokens)
        if exceeded := meter.take_tokens(tokens, self._clock.monotonic()):
            raise refusal(exceeded)
        turn: Turn | None = None
        try:
            turn = Turn(self._room, tokens, await self._enter(caller, tokens))
            try:
                yield turn
            finally:
                turn.leave()
                self._left(caller, tokens)
        finally:
            used = turn.used_tokens if turn is not None else 0
            meter.give_back_tokens(max(0, tokens - used), self._clock.monotonic())

    async def _enter(self, caller: Caller, tokens: int) -> Reserved:
        self._room.check(tokens)
        if not self._queue.has_room(caller.key_id):
            raise _full(len(self._queue))
        ticket = self._queue.push(caller.key_id, tokens, self._clock.monotonic())
        waiting = _Waiting(caller, asyncio.get_running_loop().create_future())
        self._waiting[ticket] = waiting
        try:
            self._serve()
            async with asyncio.timeout(self._wait_seconds):
                return await waiting.granted
        except BaseException as exc:
            if waiting.is_granted:  # in the very moment in which we gave up
                self._room.release(waiting.granted.result()[1])
                self._left(caller, tokens)
            if isinstance(exc, TimeoutError):
                raise _full(len(self._queue)) from exc
            raise
        finally:
            del self._waiting[ticket]
            self._queue.remove(ticket)

    def _left(self, caller: Caller, tokens: int) -> None:
        caller.meter.kv_tokens -= tokens
        self._serve()

    def _serve(self) -> None:
        """Let in whoever can begin now."""
        while self._serve_one():
            pass
        if len(self._queue) and self._next_look is None:
            self._next_look = asyncio.get_running_loop().call_later(LOOK_AGAIN_SECONDS, self._look_again)

    def _serve_one(self) -> bool:
        too_large: int | None = None
        found: Reserved | None = None

        def fits(ticket: Ticket) -> bool:
            nonlocal too_large, found
            if too_large is not None and ticket.cost >= too_large:  # as was just found out
                return False
            found = self._room.reserve(ticket.cost)
            if found is None:
                too_large = ticket.cost
            return found is not None

        ticket = self._queue.pop(fits, self._may_go, self._clock.monotonic())
        if ticket is None:
            return False
        assert found is not None
        waiting = self._waiting[ticket]
        waiting.caller.meter.kv_tokens += ticket.cost
        waiting.granted.set_result(found)
        return True

    def _may_go(self, ticket: Ticket) -> bool:
        waiting = self._waiting[ticket]
        meter = waiting.caller.meter
        most = meter.limits.kv_tokens
        return not waiting.granted.done() and (most is None or meter.kv_tokens + ticket.cost <= most)

    def _look_again(self) -> None:
        """Time has passed: patience may have ended, a node may have joined, or the last one gone."""
        self._next_look = None
        for ticket, waiting in self._waiting.items():
            try:
                self._room.check(ticket.cost)
            except RequestRefused as exc:
                if not waiting.granted.done():
                    waiting.granted.set_exception(exc)
        self._serve()


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    caller: Caller
    granted: asyncio.Future[Reserved]

    @property
    def is_granted(self) -> bool:
        return self.granted.done() and not self.granted.cancelled() and self.granted.exception() is None


def _check_kv_limit(caller: Caller, tokens: int) -> None:
    most = caller.meter.limits.kv_tokens
    if most is not None and tokens > most:
        raise RequestRefused(
            f"prompt and answer may take {tokens} tokens, your key may hold {most}; ask for a shorter answer",
            status=400,
            code="invalid_value",
            param="max_tokens",
        )


def _full(waiting: int) -> RequestRefused:
    return RequestRefused(
        f"the mesh is busy: {waiting} requests are waiting; try again in {RETRY_SECONDS} s",
        status=503,
        code="no_capacity",
        retry_after=RETRY_SECONDS,
    )
