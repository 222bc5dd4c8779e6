"""The door: turns are granted with their KV cache reserved, and whatever happens, everything comes back."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from coordinator.access.admission import Admission
from coordinator.access.api_keys import Limits
from coordinator.access.callers import Caller, anonymous
from coordinator.access.quotas import Meter
from mesh.errors import RequestRefused
from tests.support.clock import ManualClock
from tests.support.fake_pipeline import FakeRoom


def caller(key_id: str = "a", **limits: int) -> Caller:
    return Caller(key_id, None, Meter(Limits(**limits), 1000.0))


async def hold(admission: Admission, who: Caller, tokens: int, until: asyncio.Event) -> str:
    async with admission.turn(who, tokens):
        await until.wait()
    return who.key_id


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_turn_holds_its_kv_cache_and_gives_it_back() -> None:
    room, who = FakeRoom(100), caller()
    admission = Admission(room, ManualClock())
    async with admission.turn(who, 60) as turn:
        assert room.ledger.tokens(turn.route.stages[0]) == 60
        assert who.meter.kv_tokens == 60
    assert len(room.ledger) == 0
    assert who.meter.kv_tokens == 0


async def test_who_does_not_fit_waits_until_somebody_leaves() -> None:
    room, done = FakeRoom(100), asyncio.Event()
    admission = Admission(room, ManualClock())
    first = asyncio.create_task(hold(admission, caller("a"), 80, done))
    await settle()
    second = asyncio.create_task(hold(admission, caller("b"), 80, done))
    await settle()
    assert (len(room.ledger), admission.num_waiting) == (1, 1)
    done.set()
    assert await asyncio.gather(first, second) == ["a", "b"]
    assert (len(room.ledger), admission.num_waiting) == (0, 0)


async def test_giving_up_while_waiting_leaves_no_trace() -> None:
    room, done = FakeRoom(100), asyncio.Event()
    admission, who = Admission(room, ManualClock()), caller("b", tokens_per_minute=1000)
    first = asyncio.create_task(hold(admission, caller("a"), 80, done))
    await settle()
    waiting = asyncio.create_task(hold(admission, who, 80, done))
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert admission.num_waiting == 0
    assert who.meter.levels(1000.0)["tokens"].remaining == 1000
    done.set()
    await first
    assert len(room.ledger) == 0


async def test_giving_up_in_the_moment_of_the_grant_gives_it_back() -> None:
    room, done = FakeRoom(100), asyncio.Event()
    admission = Admission(room, ManualClock())
    first = asyncio.create_task(hold(admission, caller("a"), 80, done))
    await settle()
    waiting = asyncio.create_task(hold(admission, caller("b"), 80, asyncio.Event()))
    await settle()
    first.cancel()
    await asyncio.sleep(0)  # the first leaves and grants the second its turn …
    waiting.cancel()  # … which gives up before it has woken
    await asyncio.gather(first, waiting, return_exceptions=True)
    assert (len(room.ledger), admission.num_waiting) == (0, 0)


async def test_a_full_queue_and_a_long_wait_are_a_503_with_retry_after() -> None:
    room, done = FakeRoom(100), asyncio.Event()
    admission = Admission(room, ManualClock(), max_waiting=1, wait_seconds=0.01)
    first = asyncio.create_task(hold(admission, caller(), 80, done))
    await settle()
    waits = asyncio.create_task(hold(admission, caller(), 80, done))
    await settle()
    with pytest.raises(RequestRefused) as full:
        await hold(admission, caller(), 1, done)
    with pytest.raises(RequestRefused) as timed_out:
        await waits
    for caught in (full, timed_out):
        assert (caught.value.status, caught.value.code) == (503, "no_capacity")
        assert caught.value.retry_after
    done.set()
    await first


async def test_who_waits_learns_at_once_that_waiting_has_become_hopeless() -> None:
    room, done = FakeRoom(100), asyncio.Event()
    admission = Admission(room, ManualClock())
    first = asyncio.create_task(hold(admission, caller(), 80, done))
    await settle()
    waits = asyncio.create_task(hold(admission, caller(), 80, done))
    await settle()
    room.hopeless = RequestRefused("nobody serves layers 0:2", status=503, code="mesh_incomplete")
    with pytest.raises(RequestRefused, match="nobody serves"):
        async with asyncio.timeout(5):
            await waits
    done.set()
    await first


async def test_a_key_holds_no_more_kv_cache_than_its_limit() -> None:
    room, done = FakeRoom(1000), asyncio.Event()
    admission, limited = Admission(room, ManualClock()), caller("a", kv_tokens=100)
    with pytest.raises(RequestRefused, match="your key may hold 100"):
        await hold(admission, limited, 101, done)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(admission.turn(limited, 60))
        second = asyncio.create_task(hold(admission, limited, 60, done))
        await settle()
        assert admission.num_waiting == 1
        await stack.enter_async_context(admission.turn(caller("b"), 500))  # others pass
    done.set()
    await second


async def test_a_token_quota_counts_what_was_used() -> None:
    clock, who = ManualClock(), caller(tokens_per_minute=100)
    admission = Admission(FakeRoom(), clock)
    async with admission.turn(who, 90) as turn:
        turn.used_tokens = 30
    async with admission.turn(who, 70) as turn:
        turn.used_tokens = 70
    with pytest.raises(RequestRefused) as caught:
        async with admission.turn(who, 50):
            raise AssertionError("admitted past its quota")
    assert (caught.value.status, caught.value.retry_after) == (429, 30)
    clock.advance(30)
    async with admission.turn(who, 50):
        pass


async def test_two_hundred_callers_are_all_served_and_none_before_its_share() -> None:
    room = FakeRoom(100)
    admission = Admission(room, ManualClock())
    order: list[str] = []

    async def ask(who: Caller) -> None:
        async with admission.turn(who, 40):
            order.append(who.key_id)
            await asyncio.sleep(0)

    keys = [caller(f"key-{number % 4}") for number in range(200)]
    await asyncio.gather(*(ask(who) for who in keys))
    assert len(order) == 200
    for start in range(0, 160, 40):
        shares = [order[start : start + 40].count(f"key-{number}") for number in range(4)]
        assert max(shares) - min(shares) <= 3
    assert len(room.ledger) == 0


def test_anonymous_callers_have_no_limits() -> None:
    assert anonymous().meter.limits == Limits()
