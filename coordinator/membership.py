"""Who is in the mesh, and how far each one is: leases, incarnations, reservations.

No sockets, no clock: every event brings ``now`` (monotonic seconds), and what it led to is returned as changes. A refused
event raises and changes nothing.

    offer, accept -> fetching -> loading -> ready -> draining -> gone

Gone is reached from anywhere, when the lease ends or the node leaves. An accepted range is reserved from the first moment,
so that two newcomers never fetch the same gap. A node is known by its id, a process of it by its incarnation: a newer
process replaces the older, whose late words are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from coordinator.routing import count_coverage
from coordinator.topology import MAX_COUNT, Endpoint, MeshView, Node, NodeState, Report
from mesh.errors import NotFound, Temporary, UsageError
from mesh.layers import LayerRange

LEASE_SECONDS = 10.0  # a node renews three times as often; a dead one stays in routes for no longer than this
OFFER_SECONDS = 600.0  # a volunteer may think about the plan
MAX_PEERS_TOLD = 200
MAX_ANNOUNCED = 4096  # peers that are no nodes

# What a heartbeat may say, by what the one before said. Heartbeats are samples: a quick state may never be seen, but
# no node goes back. (h11's rule: whatever is not in the table is refused and changes nothing.)
TRANSITIONS: dict[NodeState, frozenset[NodeState]] = {
    NodeState.FETCHING: frozenset(NodeState),
    NodeState.LOADING: frozenset({NodeState.LOADING, NodeState.READY, NodeState.DRAINING}),
    NodeState.READY: frozenset({NodeState.READY, NodeState.DRAINING}),
    NodeState.DRAINING: frozenset({NodeState.DRAINING}),
}


class ChangeKind(StrEnum):
    JOINED = "joined"  # its layers are reserved
    READY = "ready"
    DRAINING = "draining"
    LEFT = "left"  # it said goodbye
    LOST = "lost"  # its lease ended
    REPLACED = "replaced"  # a newer process of the same node has joined


@dataclass(frozen=True, slots=True)
class Change:
    """Something that people want to read of later."""

    kind: ChangeKind
    node: Node


@dataclass(frozen=True, slots=True)
class Applicant:
    """A process that asks for work."""

    node_id: str
    name: str
    incarnation: int
    kernel_id: str
    version: str
    layers: LayerRange | None  # what it insists on
    kv_tokens: int = MAX_COUNT  # of KV cache, all sessions together
    max_sessions: int = MAX_COUNT


@dataclass(frozen=True, slots=True)
class _Offer:
    applicant: Applicant
    layers: LayerRange
    coverage: int  # of the least reserved of these layers, when it was made
    expires_at: float


@dataclass(frozen=True, slots=True)
class _Seeder:
    endpoint: Endpoint
    expires_at: float


class Membership:
    """The nodes of one release. Every method that changes something returns what changed, for the audit trail."""

    def __init__(self, num_layers: int, lease_seconds: float = LEASE_SECONDS) -> None:
        self.num_layers, self.lease_seconds = num_layers, lease_seconds
        self._nodes: dict[str, Node] = {}  # by node id
        self._offers: dict[
            str, _Offer
        ] = {}  # by node id: a node that asks again forgets what it was offered before
        self._seeders: dict[str, _Seeder] = {}  # by peer id

    # -- events

    def offer(self, applicant: Applicant, layers: LayerRange, now: float) -> None:
        """Remember what was offered. It reserves nothing."""
        self._offers[applicant.node_id] = _Offer(
            applicant, layers, self._least_reserved(layers, applicant.node_id, now), now + OFFER_SECONDS
        )

    def withdraw(self, node_id: str) -> None:
        """What was offered to it and not accepted is off."""
        self._offers.pop(node_id, None)

    def check_known(self, node_id: str, incarnation: int, now: float) -> None:
        """Raises NotFound or UsageError unless that process was offered layers or holds some."""
        offer = self._offers.get(node_id)
        if offer is None or offer.applicant.incarnation != incarnation or now >= offer.expires_at:
            self._node(node_id, incarnation, now)

    def accept(
        self, node_id: str, incarnation: int, layers: LayerRange, memory_bytes: int, now: float
    ) -> tuple[Change, ...]:
        """Reserve the offered layers.

        Raises NotFound without a valid offer, UsageError for other layers than those offered, Temporary if they were
        taken meanwhile. Saying it twice (the first answer was lost) is saying it once.
        """
        offer = self._offers.get(node_id)
        if offer is None or offer.applicant.incarnation != incarnation or now >= offer.expires_at:
            node = self._node(node_id, incarnation, now)  # raises NotFound
            if node.layers != layers:
                raise UsageError(f"{node.name} holds layers {node.layers}, not {layers}; ask for a new offer")
            self._nodes[node_id] = replace(node, expires_at=now + self.lease_seconds)
            return ()
        applicant = offer.applicant
        if offer.layers != layers:
            raise UsageError(f"{applicant.name} was offered layers {offer.layers}, not {layers}")
        if applicant.layers is None and self._least_reserved(layers, node_id, now) > offer.coverage:
            raise Temporary(f"layers {layers} were taken by another node meanwhile; ask again")
        changes = [Change(kind, node) for kind, node in self._removed_by(applicant, now)]
        node = Node(
            node_id=node_id,
            name=applicant.name,
            incarnation=incarnation,
            kernel_id=applicant.kernel_id,
            version=applicant.version,
            layers=layers,
            memory_bytes=memory_bytes,
            expires_at=now + self.lease_seconds,
            report=Report(NodeState.FETCHING),
            kv_tokens=applicant.kv_tokens,
            max_sessions=applicant.max_sessions,
        )
        self._nodes[node_id] = node
        del self._offers[node_id]
        return (*changes, Change(ChangeKind.JOINED, node))

    def heartbeat(self, node_id: str, incarnation: int, report: Report, now: float) -> tuple[Change, ...]:
        """Renew the lease. Raises NotFound if there is none (join again), UsageError if the report cannot be true."""
        node = self._node(node_id, incarnation, now)
        if report.state not in TRANSITIONS[node.state]:
            raise UsageError(f"{node.name} was {node.state} and cannot be {report.state} now; restart it")
        if report.state is NodeState.READY and report.stage is None:
            raise UsageError(f"{node.name} is ready and does not say where it serves its layers")
        renewed = replace(node, report=report, expires_at=now + self.lease_seconds, is_suspect=False)
        self._nodes[node_id] = renewed
        if report.state is node.state or report.state not in (NodeState.READY, NodeState.DRAINING):
            return ()
        return (Change(ChangeKind(report.state), renewed),)

    def suspect(self, node_id: str, incarnation: int) -> None:
        """The link to it broke. A killed node is out of routes at once and of the mesh when its lease ends; one that
        lives clears itself with its next heartbeat."""
        node = self._nodes.get(node_id)
        if node is not None and node.incarnation == incarnation:
            self._nodes[node_id] = replace(node, is_suspect=True)

    def leave(self, node_id: str, incarnation: int, now: float) -> tuple[Change, ...]:
        """Forget the node. A goodbye that comes late, or from an older process, is no error and does nothing."""
        node = self._nodes.get(node_id)
        if node is None or node.incarnation != incarnation or now >= node.expires_at:
            return ()
        del self._nodes[node_id]
        return (Change(ChangeKind.LEFT, node),)

    def announce(self, peer_id: str, endpoint: Endpoint, now: float, seconds: float | None = None) -> None:
        """A peer that is no node says where it listens, or says it again; for ``seconds``, or one lease.

        Raises Temporary when there are too many: memory is bounded, whoever is announcing.
        """
        if peer_id not in self._seeders and len(self._seeders) >= MAX_ANNOUNCED:
            raise Temporary(f"{MAX_ANNOUNCED} peers have announced themselves; try again later")
        self._seeders[peer_id] = _Seeder(endpoint, now + (seconds or self.lease_seconds))

    def withdraw_peer(self, peer_id: str) -> None:
        self._seeders.pop(peer_id, None)

    def expire(self, now: float) -> tuple[Change, ...]:
        """Forget whoever's lease has ended."""
        self._offers = {key: offer for key, offer in self._offers.items() if now < offer.expires_at}
        self._seeders = {key: seeder for key, seeder in self._seeders.items() if now < seeder.expires_at}
        lost = [node for node in self._nodes.values() if now >= node.expires_at]
        for node in lost:
            del self._nodes[node.node_id]
        return tuple(Change(ChangeKind.LOST, node) for node in lost)

    def knows(self, node_id: str, incarnation: int) -> bool:
        """Whether this process holds layers or an offer, or did until its lease ended."""
        node, offer = self._nodes.get(node_id), self._offers.get(node_id)
        return (node is not None and node.incarnation == incarnation) or (
            offer is not None and offer.applicant.incarnation == incarnation
        )

    # -- questions; a lease that has ended counts as gone, whether or not expire() has come by

    def view(self, now: float) -> MeshView:
        nodes = sorted(self._live(now), key=lambda node: (node.layers, node.node_id))
        return MeshView(tuple(nodes), self.num_layers)

    def reserved(self, now: float, *, excluding: str) -> list[LayerRange]:
        """What others than that node serve or will serve; who is draining serves no new request."""
        return [
            node.layers
            for node in self._live(now)
            if node.node_id != excluding and node.state is not NodeState.DRAINING
        ]

    def peers(self, now: float, *, excluding: str) -> list[Endpoint]:
        """BitTorrent peers of the release but the asker (a node id or peer id): seeders, who hold everything, first."""
        seeders = [
            seeder.endpoint
            for peer_id, seeder in self._seeders.items()
            if peer_id != excluding and now < seeder.expires_at
        ]
        nodes = [
            node.report.swarm
            for node in self._live(now)
            if node.node_id != excluding and node.report.swarm is not None
        ]
        return list(dict.fromkeys([*seeders, *nodes]))[:MAX_PEERS_TOLD]

    # -- inside

    def _live(self, now: float) -> Iterator[Node]:
        return (node for node in self._nodes.values() if now < node.expires_at)

    def _node(self, node_id: str, incarnation: int, now: float) -> Node:
        node = self._nodes.get(node_id)
        if node is None or now >= node.expires_at:
            raise NotFound(f"node {node_id[:80]!r} holds no lease here; join again")
        if node.incarnation != incarnation:
            raise UsageError(
                f"{node.name} has joined again from another process; two nodes must not share one --data directory"
            )
        return node

    def _removed_by(self, applicant: Applicant, now: float) -> Iterator[tuple[ChangeKind, Node]]:
        """The node's earlier self, if that is worth telling: not where the same process takes its layers again."""
        node = self._nodes.get(applicant.node_id)
        if node is None:
            return
        if now >= node.expires_at:
            yield ChangeKind.LOST, node
        elif node.incarnation != applicant.incarnation:
            yield ChangeKind.REPLACED, node

    def _least_reserved(self, layers: LayerRange, node_id: str, now: float) -> int:
        coverage = count_coverage(self.reserved(now, excluding=node_id), self.num_layers)
        return min(coverage[layers.start : layers.stop])
