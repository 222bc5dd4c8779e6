import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, text

from coordinator.join_tokens import admit, create_token
from coordinator.state import StateStore, open_state
from coordinator.state.database import upgrade
from coordinator.state.models import Base
from mesh.errors import MeshError, NotAuthorised, NotFound, UsageError
from mesh.layers import LayerRange

NOW = 1_750_000_000.0  # seconds since the Unix epoch
DIGEST = b"t" * 32
LAYERS = LayerRange(0, 4)


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[StateStore]:
    async with open_state(tmp_path) as opened:
        yield opened


def test_migrations_end_where_the_models_are() -> None:
    def differences(connection: Connection) -> list[object]:
        upgrade(connection)
        return compare_metadata(MigrationContext.configure(connection), Base.metadata)

    engine = create_engine("sqlite://")
    try:
        with engine.begin() as connection:
            assert differences(connection) == []
    finally:
        engine.dispose()


def test_migrating_again_changes_nothing() -> None:
    engine = create_engine("sqlite://")
    try:
        with engine.begin() as connection:
            upgrade(connection)
            connection.execute(text("INSERT INTO audit VALUES (1, 0, 'event', 'subject', 'detail')"))
            upgrade(connection)
            assert connection.execute(text("SELECT count(*) FROM audit")).scalar() == 1
    finally:
        engine.dispose()


async def test_what_was_recorded_is_there_after_a_restart(tmp_path: Path) -> None:
    async with open_state(tmp_path) as state:
        token = await create_token(state, DIGEST, "friend", NOW)
        await state.record_node("ready", "id-a", "node-a", LAYERS, NOW)
    async with open_state(tmp_path) as state:
        assert admit(await state.tokens(), token.secret, NOW).label == "friend"
        (node,) = await state.nodes()
        assert (node.name, node.state, node.layers, node.last_seen) == ("node-a", "ready", LAYERS, NOW)


async def test_two_processes_may_hold_the_state_at_once(tmp_path: Path) -> None:
    # `token create` and `token revoke` work on the files of a coordinator that runs.
    async with open_state(tmp_path) as running, open_state(tmp_path) as command:
        token = await create_token(command, DIGEST, "", NOW)
        (record,) = await running.tokens()
        await command.revoke_token(record.token_id, NOW)
        with pytest.raises(NotAuthorised, match="was revoked"):
            admit(await running.tokens(), token.secret, NOW)


async def test_nobody_but_the_owner_can_read_the_files(tmp_path: Path, state: StateStore) -> None:
    await create_token(state, DIGEST, "", NOW)
    files = list(tmp_path.glob("state.db*"))
    assert files
    for path in files:  # the journal files too
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_no_file_holds_a_token_secret(tmp_path: Path) -> None:
    async with open_state(tmp_path) as state:
        token = await create_token(state, DIGEST, "friend", NOW)
        held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"friend" in held
    assert token.secret not in held
    assert token.encode().encode() not in held


@pytest.mark.parametrize(("age", "is_valid"), [(0.0, True), (59.9, True), (60.0, False)])
async def test_a_token_lets_in_until_it_expires(state: StateStore, age: float, is_valid: bool) -> None:
    token = await create_token(state, DIGEST, "", NOW, NOW + 60)
    records = await state.tokens()
    if is_valid:
        assert admit(records, token.secret, NOW + age).digest == records[0].digest
    else:
        with pytest.raises(NotAuthorised, match="has expired"):
            admit(records, token.secret, NOW + age)


async def test_a_revoked_token_lets_nobody_in_and_the_others_still_do(state: StateStore) -> None:
    bad, good = [await create_token(state, DIGEST, label, NOW) for label in ("bad", "good")]
    (record,) = [record for record in await state.tokens() if record.label == "bad"]
    await state.revoke_token(record.token_id, NOW + 1)
    with pytest.raises(NotAuthorised, match=rf"{record.token_id} was revoked; ask the operator"):
        admit(await state.tokens(), bad.secret, NOW + 1)
    assert admit(await state.tokens(), good.secret, NOW + 1).label == "good"


async def test_an_unknown_secret_is_refused(state: StateStore) -> None:
    await create_token(state, DIGEST, "", NOW)
    with pytest.raises(NotAuthorised, match="not known here"):
        admit(await state.tokens(), b"x" * 16, NOW)


async def test_revoking_needs_one_token_that_is_meant(state: StateStore) -> None:
    for _ in range(17):  # of that many, two begin with the same hex digit
        await create_token(state, DIGEST, "", NOW)
    ids = [record.token_id for record in await state.tokens()]
    shared = next(digit for digit in "0123456789abcdef" if sum(i.startswith(digit) for i in ids) > 1)
    with pytest.raises(UsageError, match="give more of the id"):
        await state.revoke_token(shared, NOW)
    for nobody in ("", "zz"):
        with pytest.raises(NotFound, match="token list"):
            await state.revoke_token(nobody, NOW)
    assert all(record.revoked is None for record in await state.tokens())


async def test_the_audit_trail_tells_the_story_in_order(state: StateStore) -> None:
    await create_token(state, DIGEST, "friend", NOW)
    for second, event in enumerate(("joined", "ready", "lost"), start=1):
        await state.record_node(event, "id-a", "node-a", LAYERS, NOW + second)
    story = [(record.event, record.detail) for record in await state.audit()]
    assert story == [
        ("token created", "friend"),
        *((f"node {event}", "node-a layers 0:4") for event in ("joined", "ready", "lost")),
    ]
    assert [record.event for record in await state.audit(limit=2)] == ["node ready", "node lost"]


async def test_a_node_that_returns_keeps_the_day_it_was_first_seen(state: StateStore) -> None:
    await state.record_node("joined", "id-a", "node-a", LAYERS, NOW)
    await state.record_node("joined", "id-a", "new-name", LayerRange(4, 6), NOW + 9)
    (node,) = await state.nodes()
    assert (node.first_seen, node.last_seen) == (NOW, NOW + 9)
    assert (node.name, str(node.layers)) == ("new-name", "4:6")


async def test_after_a_restart_nobody_counts_as_present(state: StateStore) -> None:
    await state.record_node("ready", "id-a", "a", LAYERS, NOW)
    await state.record_node("left", "id-b", "b", LAYERS, NOW)
    await state.forget_presence()
    assert {node.name: node.state for node in await state.nodes()} == {"a": "lost", "b": "left"}


async def test_a_file_that_is_no_database_is_refused_by_name_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"something else, long enough to be looked at as a database header" * 20)
    before = path.read_bytes()
    with pytest.raises(MeshError, match=r"state\.db: file is not a database; restore it"):
        async with open_state(tmp_path):
            pass
    assert path.read_bytes() == before


async def test_a_database_of_a_newer_version_is_refused_and_kept(tmp_path: Path) -> None:
    async with open_state(tmp_path) as state:
        await create_token(state, DIGEST, "", NOW)
    engine = create_engine(f"sqlite:///{tmp_path / 'state.db'}")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'r9999'"))
    engine.dispose()
    with pytest.raises(MeshError, match=r"newer version of llama-mesh .* upgrade"):
        async with open_state(tmp_path):
            pass
