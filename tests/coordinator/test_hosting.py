"""Several releases in one coordinator: who gets which, and how a new version takes over without a hole."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from coordinator.availability import Availability
from coordinator.hosting import Hosted, Hosting
from coordinator.membership import Applicant, Membership
from coordinator.placement import Candidate, Capacity, choose_release
from coordinator.service import OfferedRelease
from coordinator.topology import NodeState, Report
from mesh.errors import NotEnoughMemory, NotFound
from mesh.layers import LayerRange
from mesh.model.memory import plan_stage
from mesh.weights.trust.license_text import LicenseTexts
from tests.coordinator.test_service import CONFIG
from tests.mesh.weights.example_manifest import example_manifest
from tests.support.clock import ManualClock
from tests.support.hosting import hosted

ALL = LayerRange(0, 4)
ROOMY = Capacity(memory_bytes=1 << 40, kv_tokens=128)


@dataclass
class World:
    clock: ManualClock = field(default_factory=ManualClock)
    numbers: int = 0

    def __post_init__(self) -> None:
        self.hosting = Hosting(self.clock)

    def release(self, name: str, *, at_once: bool = False) -> Hosted:
        self.numbers += 1
        membership = Membership(CONFIG.num_layers)
        manifest = replace(example_manifest(name, CONFIG), created=f"2026-01-01T00:00:{self.numbers:02d}Z")
        offered = OfferedRelease(manifest, b"", b"", b"", LicenseTexts(b""))
        made = hosted(
            offered, membership, Availability(name, membership, self.clock), name=name, at_once=at_once
        )
        self.hosting.add(made)
        return made

    def join(self, release: Hosted, node: str, layers: LayerRange = ALL) -> None:
        now = self.clock.monotonic()
        release.membership.offer(Applicant(node, node, 1, "kernel", "0", layers), layers, now)
        release.membership.accept(node, 1, layers, 1, now)
        report = Report(NodeState.READY, stage=("127.0.0.1", 7000))
        release.membership.heartbeat(node, 1, report, now)


@pytest.fixture
def world() -> World:
    return World()


def test_models_are_known_by_name_in_the_order_they_were_added(world: World) -> None:
    world.release("b")
    world.release("a")
    world.release("b")
    assert list(world.hosting) == ["b", "a"]
    assert len(world.hosting) == 2
    with pytest.raises(KeyError):
        world.hosting["absent"]
    assert "absent" not in world.hosting


def test_the_newest_version_that_can_answer_is_the_one_that_does(world: World) -> None:
    old = world.release("m")
    world.join(old, "a")
    new = world.release("m")
    assert world.hosting["m"] is old.model
    world.join(new, "b", LayerRange(0, 2))
    assert world.hosting["m"] is old.model
    world.join(new, "c", LayerRange(2, 4))
    assert world.hosting["m"] is new.model
    assert world.hosting.health().is_ready
    assert world.hosting.health().nodes == 3


def test_a_version_that_replaces_at_once_answers_for_its_name_even_while_it_cannot(world: World) -> None:
    old = world.release("m")
    world.join(old, "a")
    new = world.release("m", at_once=True)
    assert world.hosting["m"] is new.model
    assert not world.hosting.health().is_ready


def test_a_newcomer_is_offered_the_model_that_lacks_layers_then_the_one_served_least(world: World) -> None:
    first, second = world.release("first"), world.release("second")
    assert world.hosting.choose("x", ROOMY, "", "") == (first, ALL)
    world.join(first, "a")
    assert world.hosting.choose("x", ROOMY, "", "")[0] is second
    world.join(second, "b")
    world.join(second, "c")
    assert world.hosting.choose("x", ROOMY, "", "")[0] is first


def test_a_newcomer_gets_the_model_it_insists_on_or_is_told_what_there_is(world: World) -> None:
    world.release("first")
    second = world.release("second")
    assert world.hosting.choose("x", ROOMY, "second", "")[0] is second
    with pytest.raises(NotFound, match="there is first, second"):
        world.hosting.choose("x", ROOMY, "third", "")


def test_a_newcomer_is_never_offered_an_old_version_but_a_node_that_comes_back_is(world: World) -> None:
    old, new = world.release("m"), world.release("m")
    assert world.hosting.choose("x", ROOMY, "", "")[0] is new
    assert world.hosting.choose("x", ROOMY, "", old.release_id)[0] is old
    with pytest.raises(NotFound, match="not served here"):
        world.hosting.choose("x", ROOMY, "", "ff" * 32)


def test_a_node_has_one_offer_at_a_time(world: World) -> None:
    first, second = world.release("first"), world.release("second")
    now = world.clock.monotonic()
    first.membership.offer(Applicant("x", "x", 1, "k", "0", None), ALL, now)
    world.hosting.choose("x", ROOMY, "second", "")
    second.membership.offer(Applicant("x", "x", 1, "k", "0", None), ALL, now)
    assert world.hosting.of_node("x", 1) is second
    with pytest.raises(NotFound):
        first.membership.accept("x", 1, ALL, 1, now)


def test_nodes_move_only_where_no_answer_runs_and_no_hole_opens(world: World) -> None:
    old = world.release("m")
    world.join(old, "a")
    assert not world.hosting.should_move(old, "a")  # there is nothing newer
    new = world.release("m")
    assert not world.hosting.should_move(old, "a")  # it is all that the old version has
    world.join(old, "b")
    assert world.hosting.should_move(old, "a")  # the other one is enough
    reserved = old.availability.reserve(10)
    assert reserved is not None
    busy = reserved[0].stages[0].node_id
    assert not world.hosting.should_move(old, busy)
    old.availability.release(reserved[1])
    old.membership.leave("a", 1, world.clock.monotonic())
    world.join(new, "a")
    assert world.hosting.should_move(old, "b")  # the new version answers


def test_at_once_moves_the_last_node_too_when_its_answers_have_ended(world: World) -> None:
    old = world.release("m")
    world.join(old, "a")
    world.release("m", at_once=True)
    reserved = old.availability.reserve(10)
    assert reserved is not None
    assert not world.hosting.should_move(old, "a")
    old.availability.release(reserved[1])
    assert world.hosting.should_move(old, "a")


def test_an_old_version_is_abandoned_once_its_nodes_and_answers_are_gone(world: World) -> None:
    old = world.release("m")
    world.join(old, "a")
    new = world.release("m")
    assert world.hosting.abandoned() == ()
    world.join(new, "b")
    assert world.hosting.abandoned() == ()
    old.membership.leave("a", 1, world.clock.monotonic())
    assert world.hosting.abandoned() == (old,)


def test_the_release_that_fits_is_chosen_and_the_reason_told_where_none_does() -> None:
    part = Capacity(
        memory_bytes=plan_stage(CONFIG, LayerRange(1, 2), 128).total_bytes,
        kv_tokens=128,
        layers=LayerRange(1, 2),
    )
    assert choose_release([Candidate(CONFIG, [ALL]), Candidate(CONFIG, [])], part) == (1, LayerRange(1, 2))
    with pytest.raises(NotEnoughMemory):
        choose_release([Candidate(CONFIG, [])], Capacity(memory_bytes=1, kv_tokens=128))
