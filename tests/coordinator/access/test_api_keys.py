"""Keys: made once, known by their digest alone, judged plainly."""

from __future__ import annotations

import pytest

from coordinator.access.api_keys import KeyRecord, Limits, Scope, create_key, identify
from coordinator.access.callers import KEYS_FRESH_SECONDS, Callers
from mesh.errors import NotAuthorised, UsageError
from tests.support.clock import ManualClock


class Records:
    """A key store in memory that counts how often it is read."""

    def __init__(self) -> None:
        self.records: list[KeyRecord] = []
        self.reads = 0

    async def add_key(self, record: KeyRecord) -> None:
        self.records.append(record)

    async def keys(self) -> list[KeyRecord]:
        self.reads += 1
        return list(self.records)


async def test_a_key_is_known_by_its_digest_and_is_nowhere_on_record() -> None:
    store = Records()
    key, record = await create_key(store, "alice", 1.0, models=["tiny"], scopes=[Scope.GENERATE])
    assert identify(store.records, key, 2.0) == record
    assert key not in repr(record)
    assert record.may_use("tiny")
    assert not record.may_use("other")
    assert Scope.INSPECT not in record.scopes


@pytest.mark.parametrize(
    "given", ["", "sk-mesh-", "sk-mesh-" + "a" * 44, "sk-" + "b" * 1000, "sk-mesh-é" + "a" * 42]
)
def test_what_is_no_key_is_refused_without_being_repeated(given: str) -> None:
    with pytest.raises(NotAuthorised) as caught:
        identify([], given, 1.0)
    assert given == "" or given not in str(caught.value)


async def test_expired_and_revoked_keys_say_so_by_their_id() -> None:
    store = Records()
    key, record = await create_key(store, "", 1.0, expires=10.0)
    with pytest.raises(NotAuthorised, match=f"{record.key_id} has expired"):
        identify(store.records, key, 10.0)
    store.records[0] = KeyRecord(record.digest, "", 1.0, revoked=2.0)
    with pytest.raises(NotAuthorised, match=f"{record.key_id} was revoked"):
        identify(store.records, key, 3.0)


@pytest.mark.parametrize("value", [0, -1, 10**9 + 1])
def test_a_limit_out_of_bounds_is_refused_by_name(value: int) -> None:
    with pytest.raises(UsageError, match="tokens per minute"):
        Limits(tokens_per_minute=value)


async def test_without_a_key_on_record_everybody_may_ask_and_with_one_nobody_else() -> None:
    store, clock = Records(), ManualClock()
    callers = Callers(store, clock)
    assert (await callers.identify(None)).key_id == "anonymous"
    assert (await callers.identify("whatever clients must send")).key_id == "anonymous"
    key, record = await create_key(store, "", 1.0)
    clock.advance(KEYS_FRESH_SECONDS)
    assert (await callers.identify(key)).key_id == record.key_id
    with pytest.raises(NotAuthorised, match="asks for an API key"):
        await callers.identify(None)


async def test_a_revoked_key_stops_within_a_second_and_the_database_is_read_no_more_often() -> None:
    store, clock = Records(), ManualClock()
    key, record = await create_key(store, "", 1.0)
    callers = Callers(store, clock)
    first = await callers.identify(key)
    for _ in range(100):
        assert await callers.identify(key) is first  # what it has taken so far is kept
    assert store.reads == 1
    store.records[0] = KeyRecord(record.digest, "", 1.0, revoked=2.0)
    clock.advance(KEYS_FRESH_SECONDS)
    with pytest.raises(NotAuthorised, match="revoked"):
        await callers.identify(key)
