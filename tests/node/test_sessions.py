"""Sessions reserve before they open, admit only what continues them, and give everything back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.model.kv_cache import KvBudget, KvCache
from mesh.model.sampling import SamplingParams
from node.sessions import BadStep, MaskGate, Session, SessionRefused, SessionTable
from tests.support.stage_servers import CONFIG


def table(total_tokens: int = 100, max_sessions: int = 4) -> SessionTable:
    return SessionTable(KvBudget(total_tokens), max_sessions, lambda tokens: KvCache(CONFIG, 1, tokens))


def open_session(sessions: SessionTable, name: str = "s", max_tokens: int = 10, epoch: int = 1) -> Session:
    return sessions.open(
        name,
        epoch,
        request_id="r",
        max_tokens=max_tokens,
        sampling=SamplingParams(),
        return_logits=False,
        next_stage=None,
        owner=None,
    )


def test_budget_is_held_while_open_and_given_back_once() -> None:
    sessions = table()
    open_session(sessions, "a", 60)
    assert sessions.free_tokens == 40
    with pytest.raises(SessionRefused, match="41 tokens asked, 40 of 100 free"):
        open_session(sessions, "b", 41)
    sessions.close("a")
    sessions.close("a")
    assert sessions.free_tokens == 100


def test_opening_twice_is_refused_and_keeps_the_first() -> None:
    sessions = table()
    first = open_session(sessions, "a", 10)
    with pytest.raises(SessionRefused, match="open already"):
        open_session(sessions, "a", 20)
    assert sessions.get("a", 1) is first
    assert sessions.free_tokens == 90


def test_frame_of_another_epoch_finds_no_session() -> None:
    sessions = table()
    open_session(sessions, epoch=2)
    assert sessions.get("s", 1) is None
    assert sessions.get("s", 2) is not None


def test_step_seen_before_is_dropped_and_changes_nothing() -> None:
    sessions = table()
    session = open_session(sessions)
    assert sessions.admit_step(session, 1, 0, 4)
    assert not sessions.admit_step(session, 1, 0, 4)
    assert (session.next_position, session.last_step_id) == (4, 1)


@pytest.mark.parametrize(("position", "num_tokens"), [(3, 1), (5, 1), (4, 7)])
def test_step_that_does_not_continue_is_refused_and_changes_nothing(position: int, num_tokens: int) -> None:
    sessions = table()
    session = open_session(sessions)
    sessions.admit_step(session, 1, 0, 4)
    with pytest.raises(BadStep):
        sessions.admit_step(session, 2, position, num_tokens)
    assert (session.next_position, session.last_step_id) == (4, 1)


@given(
    st.lists(
        st.tuples(st.sampled_from(["open", "close"]), st.sampled_from("abcdef"), st.integers(1, 60)),
        max_size=40,
    )
)
def test_free_tokens_always_equal_the_budget_less_what_is_open(events: list[tuple[str, str, int]]) -> None:
    sessions, held = table(max_sessions=3), {}
    for kind, name, tokens in events:
        if kind == "close":
            sessions.close(name)
            held.pop(name, None)
            continue
        try:
            open_session(sessions, name, tokens)
            held[name] = tokens
        except SessionRefused:
            assert name in held or len(held) == 3 or tokens > 100 - sum(held.values())
    assert sessions.free_tokens == 100 - sum(held.values())
    assert len(sessions) == len(held)


# -- draws and their masks


def test_a_draw_and_its_mask_meet_whichever_comes_first() -> None:
    gate = MaskGate()
    assert gate.on_work(5, "draw") is None
    assert gate.on_mask(5, b"mask") == ("draw", b"mask")
    assert gate.on_mask(6, b"next") is None
    assert gate.on_work(6, "again") == ("again", b"next")
    assert gate.drop() is None


def test_a_mask_for_another_place_opens_nothing() -> None:
    gate = MaskGate()
    assert gate.on_mask(4, b"late") is None
    assert gate.on_work(5, "draw") is None
    assert gate.on_mask(6, b"early") is None
    assert gate.on_mask(5, b"mask") == ("draw", b"mask")


def test_a_draw_that_waits_can_be_dropped() -> None:
    gate = MaskGate()
    gate.on_work(5, "draw")
    assert gate.drop() == "draw"
    assert gate.on_mask(5, b"mask") is None
