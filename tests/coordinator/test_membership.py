from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from coordinator.membership import TRANSITIONS, Applicant, Change, Membership
from coordinator.topology import NodeState, Report
from mesh.errors import MeshError, NotFound, Temporary, UsageError
from mesh.layers import LayerRange

NUM_LAYERS = 6
LEASE = 10.0


@dataclass
class Mesh:
    """A membership and the hand of its clock; nodes in it speak in one line."""

    membership: Membership = field(default_factory=lambda: Membership(NUM_LAYERS, LEASE))
    now: float = 100.0

    def offer(
        self, name: str, layers: str, *, incarnation: int = 1, insisted: LayerRange | None = None
    ) -> None:
        applicant = Applicant(name, name, incarnation, "kernel", "0.1.0", insisted)
        self.membership.offer(applicant, LayerRange.parse(layers), self.now)

    def accept(self, name: str, layers: str, *, incarnation: int = 1) -> list[str]:
        return told(self.membership.accept(name, incarnation, LayerRange.parse(layers), 1, self.now))

    def join(self, name: str, layers: str, *, incarnation: int = 1) -> list[str]:
        self.offer(name, layers, incarnation=incarnation)
        return self.accept(name, layers, incarnation=incarnation)

    def beat(self, name: str, state: NodeState, *, incarnation: int = 1, port: int = 7000) -> list[str]:
        report = Report(state, stage=("127.0.0.1", port), swarm=("127.0.0.1", port + 1), kv_tokens_free=64)
        return told(self.membership.heartbeat(name, incarnation, report, self.now))

    def serve(self, name: str, layers: str, **options: int) -> None:
        self.join(name, layers)
        self.beat(name, NodeState.READY, **options)

    def names(self) -> list[str]:
        return [node.name for node in self.membership.view(self.now).nodes]

    def route(self) -> str:
        return str(self.membership.view(self.now).route())


def told(changes: tuple[Change, ...]) -> list[str]:
    return [f"{change.node.name} {change.kind}" for change in changes]


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


# -- joining


def test_an_offer_reserves_nothing_and_an_acceptance_does(mesh: Mesh) -> None:
    mesh.offer("a", "0:3")
    assert mesh.membership.reserved(mesh.now, excluding="") == []
    assert mesh.accept("a", "0:3") == ["a joined"]
    assert mesh.membership.reserved(mesh.now, excluding="") == [LayerRange(0, 3)]


def test_nobody_joins_without_an_offer(mesh: Mesh) -> None:
    with pytest.raises(NotFound):
        mesh.accept("a", "0:3")
    assert mesh.names() == []


def test_only_the_offered_layers_can_be_taken(mesh: Mesh) -> None:
    mesh.offer("a", "0:3")
    with pytest.raises(UsageError, match=r"0:3, not 0:6"):
        mesh.accept("a", "0:6")
    assert mesh.names() == []
    assert mesh.accept("a", "0:3") == ["a joined"]


def test_the_slower_of_two_that_were_offered_the_same_gap_is_told_to_ask_again(mesh: Mesh) -> None:
    mesh.offer("a", "0:3")
    mesh.offer("b", "0:3")
    mesh.accept("a", "0:3")
    with pytest.raises(Temporary, match="ask again"):
        mesh.accept("b", "0:3")
    assert mesh.names() == ["a"]


def test_layers_that_a_volunteer_insists_on_are_theirs_whoever_was_faster(mesh: Mesh) -> None:
    mesh.offer("b", "0:3", insisted=LayerRange(0, 3))
    mesh.join("a", "0:3")
    assert mesh.accept("b", "0:3") == ["b joined"]


def test_a_second_stage_of_a_complete_model_may_join(mesh: Mesh) -> None:
    mesh.serve("a", "0:6")
    assert mesh.join("b", "0:6") == ["b joined"]


def test_an_acceptance_that_is_sent_twice_counts_once(mesh: Mesh) -> None:
    mesh.join("a", "0:3")
    assert mesh.accept("a", "0:3") == []
    assert mesh.names() == ["a"]


def test_an_offer_that_lay_too_long_is_void(mesh: Mesh) -> None:
    mesh.offer("a", "0:3")
    mesh.now += 601
    with pytest.raises(NotFound):
        mesh.accept("a", "0:3")


# -- staying


@pytest.mark.parametrize("before", NodeState)
@pytest.mark.parametrize("after", NodeState)
def test_a_node_moves_only_as_the_table_says_and_a_refusal_changes_nothing(
    mesh: Mesh, before: NodeState, after: NodeState
) -> None:
    mesh.join("a", "0:6")
    mesh.beat("a", before)
    view = mesh.membership.view(mesh.now)
    mesh.now += 1
    if after in TRANSITIONS[before]:
        mesh.beat("a", after)
        assert mesh.membership.view(mesh.now).nodes[0].state is after
    else:
        with pytest.raises(UsageError):
            mesh.beat("a", after)
        assert mesh.membership.view(mesh.now) == view  # the lease was not renewed either


def test_becoming_ready_is_told_once(mesh: Mesh) -> None:
    mesh.join("a", "0:6")
    assert mesh.beat("a", NodeState.FETCHING) == []
    assert mesh.beat("a", NodeState.READY) == ["a ready"]
    assert mesh.beat("a", NodeState.READY) == []


def test_a_ready_node_says_where_its_stage_is(mesh: Mesh) -> None:
    mesh.join("a", "0:6")
    with pytest.raises(UsageError):
        mesh.membership.heartbeat("a", 1, Report(NodeState.READY), mesh.now)
    assert mesh.membership.view(mesh.now).nodes[0].state is NodeState.FETCHING


def test_a_heartbeat_of_a_stranger_asks_it_to_join(mesh: Mesh) -> None:
    with pytest.raises(NotFound, match="join again"):
        mesh.beat("a", NodeState.READY)


def test_expired_lease_removes_the_node_from_routes_even_before_anybody_cleans_up(mesh: Mesh) -> None:
    mesh.serve("a", "0:6")
    mesh.now += LEASE - 0.1
    assert mesh.route() == "0:6 a"
    mesh.now += 0.1
    assert mesh.membership.view(mesh.now).route() is None
    assert told(mesh.membership.expire(mesh.now)) == ["a lost"]
    assert mesh.membership.expire(mesh.now) == ()


def test_a_heartbeat_renews_the_lease(mesh: Mesh) -> None:
    mesh.serve("a", "0:6")
    for _ in range(3):
        mesh.now += LEASE - 0.1
        mesh.beat("a", NodeState.READY)
    assert mesh.membership.expire(mesh.now) == ()
    assert mesh.names() == ["a"]


def test_a_node_that_was_forgotten_joins_again_and_is_ready_at_once(mesh: Mesh) -> None:
    mesh.serve("a", "0:6")
    mesh.now += LEASE
    with pytest.raises(NotFound):
        mesh.beat("a", NodeState.READY)
    mesh.join("a", "0:6")
    assert mesh.beat("a", NodeState.READY) == ["a ready"]
    assert mesh.route() == "0:6 a"


# -- incarnations


def test_a_new_process_replaces_the_old_one_of_the_same_node(mesh: Mesh) -> None:
    mesh.serve("a", "0:6")
    assert mesh.join("a", "0:3", incarnation=2) == ["a replaced", "a joined"]
    assert mesh.names() == ["a"]
    assert mesh.membership.view(mesh.now).route() is None


def test_late_words_of_a_replaced_process_are_refused_and_change_nothing(mesh: Mesh) -> None:
    mesh.serve("a", "0:6")
    mesh.join("a", "0:3", incarnation=2)
    view = mesh.membership.view(mesh.now)
    with pytest.raises(UsageError, match="another process"):
        mesh.beat("a", NodeState.DRAINING, incarnation=1)
    assert mesh.membership.leave("a", 1, mesh.now) == ()
    assert mesh.membership.view(mesh.now) == view


# -- leaving


def test_a_goodbye_frees_the_layers_and_saying_it_again_does_no_harm(mesh: Mesh) -> None:
    mesh.serve("a", "0:6")
    assert told(mesh.membership.leave("a", 1, mesh.now)) == ["a left"]
    assert mesh.membership.leave("a", 1, mesh.now) == ()
    assert mesh.membership.reserved(mesh.now, excluding="") == []


def test_a_draining_node_serves_no_new_request_and_its_layers_are_offered_to_others(mesh: Mesh) -> None:
    mesh.serve("a", "0:6")
    assert mesh.beat("a", NodeState.DRAINING) == ["a draining"]
    assert mesh.membership.view(mesh.now).route() is None
    assert mesh.membership.reserved(mesh.now, excluding="") == []


# -- what others see


def test_a_node_whose_link_broke_is_out_of_routes_until_it_speaks_again(mesh: Mesh) -> None:
    mesh.serve("a", "0:6", port=7000)
    mesh.serve("b", "0:6", port=7100)
    first = mesh.route()
    name = first.split()[-1]
    mesh.membership.suspect(name, 1)
    assert mesh.route() not in (first, "None")
    assert mesh.names() == ["a", "b"]  # it keeps its lease and its layers
    mesh.beat(name, NodeState.READY, port=7000 if name == "a" else 7100)
    assert mesh.route() == first


def test_suspicion_of_an_older_process_does_not_touch_the_new_one(mesh: Mesh) -> None:
    mesh.serve("a", "0:6")
    mesh.membership.suspect("a", 99)
    mesh.membership.suspect("nobody", 1)
    assert mesh.route() != "None"


def test_stages_that_adjoin_make_a_route_and_missing_layers_are_named(mesh: Mesh) -> None:
    mesh.serve("a", "0:2")
    mesh.serve("c", "4:6")
    view = mesh.membership.view(mesh.now)
    assert view.missing == (LayerRange(2, 4),)
    assert view.coverage == (1, 1, 0, 0, 1, 1)
    mesh.serve("b", "2:4")
    assert mesh.route() == "0:2 a → 2:4 b → 4:6 c"
    assert mesh.membership.view(mesh.now).missing == ()


def test_peers_are_everybody_who_holds_shards_but_not_the_asker(mesh: Mesh) -> None:
    mesh.serve("a", "0:3", port=1000)
    mesh.serve("b", "3:6", port=2000)
    mesh.membership.announce("seeder", ("127.0.0.1", 3000), mesh.now)
    here = "127.0.0.1"
    assert mesh.membership.peers(mesh.now, excluding="a") == [(here, 3000), (here, 2001)]
    assert mesh.membership.peers(mesh.now, excluding="seeder") == [(here, 1001), (here, 2001)]


def test_a_silent_seeder_is_no_peer_any_more(mesh: Mesh) -> None:
    mesh.membership.announce("seeder", ("127.0.0.1", 3000), mesh.now)
    mesh.now += LEASE
    assert mesh.membership.peers(mesh.now, excluding="a") == []


# -- any order of events

names = st.sampled_from("ab")
incarnations = st.integers(1, 2)
layer_ranges = st.sampled_from(["0:3", "3:6", "0:6", "2:4"])


class AnyOrder(RuleBasedStateMachine):
    """Whatever strangers say, in whatever order: nothing but MeshErrors, and never a member without a lease."""

    def __init__(self) -> None:
        super().__init__()
        self.mesh = Mesh()
        self.renewed: dict[str, float] = {}  # when a node's last word was accepted

    @rule(name=names, incarnation=incarnations, layers=layer_ranges)
    def offer(self, name: str, incarnation: int, layers: str) -> None:
        self.mesh.offer(name, layers, incarnation=incarnation)

    @rule(name=names, incarnation=incarnations, layers=layer_ranges)
    def accept(self, name: str, incarnation: int, layers: str) -> None:
        self._try(name, lambda: self.mesh.accept(name, layers, incarnation=incarnation))

    @rule(name=names, incarnation=incarnations, state=st.sampled_from(NodeState))
    def beat(self, name: str, incarnation: int, state: NodeState) -> None:
        self._try(name, lambda: self.mesh.beat(name, state, incarnation=incarnation))

    @rule(name=names, incarnation=incarnations)
    def leave(self, name: str, incarnation: int) -> None:
        if self.mesh.membership.leave(name, incarnation, self.mesh.now):
            del self.renewed[name]

    @rule(seconds=st.sampled_from([0.5, LEASE / 2, LEASE]))
    def wait(self, seconds: float) -> None:
        self.mesh.now += seconds

    @rule()
    def expire(self) -> None:
        self.mesh.membership.expire(self.mesh.now)

    @invariant()
    def members_are_those_whose_last_accepted_word_is_younger_than_a_lease(self) -> None:
        expected = {name for name, when in self.renewed.items() if self.mesh.now < when + LEASE}
        assert set(self.mesh.names()) == expected

    def _try(self, name: str, event) -> None:  # type: ignore[no-untyped-def]
        before = self.mesh.membership.view(self.mesh.now)
        try:
            event()
            self.renewed[name] = self.mesh.now
        except MeshError:
            assert self.mesh.membership.view(self.mesh.now) == before


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
