"""The mesh at one moment: its nodes, what they serve, what is lacking. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from coordinator.routing import ReadyStage, Route, RouteStage, count_coverage, find_route, missing_layers
from mesh.layers import LayerRange

Endpoint = tuple[str, int]  # host, port
MAX_COUNT = 2**63 - 1  # fits every integer of whoever reads it later; also: as many as are wanted


class NodeState(StrEnum):
    FETCHING = "fetching"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Report:
    """What a node says of itself in a heartbeat."""

    state: NodeState
    progress: float = 0.0  # of fetching, 0 to 1
    stage: Endpoint | None = None  # where it serves its layers; a ready node has one
    swarm: Endpoint | None = None  # where its BitTorrent peer listens
    kv_tokens_free: int = 0
    sessions: int = 0
    steps_computed: int = 0  # since the engine started
    fetched_bytes: int = 0
    redundant_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """One process that holds a lease."""

    node_id: str
    name: str  # what people call it
    incarnation: int
    kernel_id: str
    version: str
    layers: LayerRange
    memory_bytes: int  # by its own plan
    expires_at: float  # monotonic seconds
    report: Report
    kv_tokens: int = MAX_COUNT  # of KV cache, all sessions together
    max_sessions: int = MAX_COUNT
    is_suspect: bool = False  # its link broke; until it speaks again no request is sent there

    @property
    def state(self) -> NodeState:
        return self.report.state

    def ready_stage(self) -> ReadyStage | None:
        """As routes see it; None unless it is ready and, as far as we know, alive."""
        if self.state is not NodeState.READY or self.report.stage is None or self.is_suspect:
            return None
        host, port = self.report.stage
        return ReadyStage(
            RouteStage(self.node_id, self.name, host, port, self.layers, self.incarnation),
            self.report.kv_tokens_free,
        )


@dataclass(frozen=True, slots=True)
class MeshView:
    """The nodes with a valid lease, by layers and id, and what follows from them."""

    nodes: tuple[Node, ...]
    num_layers: int

    @property
    def ready(self) -> tuple[ReadyStage, ...]:
        return tuple(stage for node in self.nodes if (stage := node.ready_stage()) is not None)

    def route(self) -> Route | None:
        """The route a request takes now."""
        return find_route(self.ready, self.num_layers)

    @property
    def missing(self) -> tuple[LayerRange, ...]:
        """What must be served in addition before a route exists; empty if one does."""
        return missing_layers((entry.stage.layers for entry in self.ready), self.num_layers)

    @property
    def coverage(self) -> tuple[int, ...]:
        """[num_layers] ready stages of each layer. A missing layer counts 0 even where a stage holds it that no route
        can pass for want of a common border: what matters is whether an answer is possible."""
        counts = count_coverage((entry.stage.layers for entry in self.ready), self.num_layers)
        for gap in self.missing:
            for layer in gap:
                counts[layer] = 0
        return tuple(counts)
