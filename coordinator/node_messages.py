"""What nodes and seeders say, as values, and values as they are told. Pure; whatever is out of bounds is a UsageError."""

from __future__ import annotations

import math
from collections.abc import Iterable
from urllib.parse import unquote

from coordinator.config import is_wildcard
from coordinator.membership import Applicant
from coordinator.placement import Capacity
from coordinator.topology import MAX_COUNT, Endpoint, Node, NodeState, Report
from mesh import __version__
from mesh.errors import UsageError
from mesh.layers import LayerRange
from mesh.wire import common_pb2, coordinator_pb2
from mesh.wire.channel import parse_endpoint
from mesh.wire.protocol import VERSION

MAX_ID_CHARS = 100
MAX_NAME_CHARS = 64
MAX_HOST_CHARS = 253  # of a DNS name


def check_protocol(protocol: int, version: str) -> None:
    if protocol != VERSION:
        theirs = f" (llama-mesh {version[:20]})" if version.isprintable() and version else ""
        raise UsageError(
            f"you speak protocol {protocol}{theirs}, this coordinator speaks {VERSION} (llama-mesh {__version__}); "
            "install the same version on both"
        )


def applicant_of(request: coordinator_pb2.OfferRequest) -> Applicant:
    if not request.incarnation:
        raise UsageError("incarnation is 0, which means unset; expected a random number per process")
    return Applicant(
        node_id=node_id_of(request.node_id),
        name=bounded_text("name", request.name, MAX_NAME_CHARS),
        incarnation=request.incarnation,
        kernel_id=bounded_text("kernel_id", request.kernel_id, MAX_ID_CHARS),
        version=bounded_text("version", request.version, MAX_ID_CHARS),
        layers=layers_of(request.capacity.layers) if request.capacity.HasField("layers") else None,
        kv_tokens=request.kv_tokens or MAX_COUNT,
        max_sessions=request.max_sessions or MAX_COUNT,
    )


def capacity_of(request: coordinator_pb2.OfferRequest) -> Capacity:
    capacity = request.capacity
    layers = layers_of(capacity.layers) if capacity.HasField("layers") else None
    if not 1 <= request.kv_tokens <= 1 << 30:
        raise UsageError(f"kv_tokens {request.kv_tokens}: expected 1 to {1 << 30}")
    return Capacity(min(capacity.memory_bytes, MAX_COUNT), request.kv_tokens, layers)


def report_of(request: coordinator_pb2.HeartbeatRequest, peer: str) -> Report:
    return Report(
        state=node_state(request.state),
        progress=min(max(request.progress, 0.0), 1.0) if math.isfinite(request.progress) else 0.0,
        stage=endpoint_of("stage", request.stage, peer) if request.HasField("stage") else None,
        swarm=endpoint_of("swarm", request.swarm, peer) if request.HasField("swarm") else None,
        kv_tokens_free=request.kv_tokens_free,
        sessions=request.sessions,
        steps_computed=min(request.steps_computed, MAX_COUNT),
        fetched_bytes=min(request.fetched_bytes, MAX_COUNT),
        redundant_bytes=min(request.redundant_bytes, MAX_COUNT),
    )


def node_state(number: int) -> NodeState:
    try:
        return NodeState(coordinator_pb2.NodeState.Name(number).lower())
    except ValueError as exc:
        raise UsageError(f"node state {number} is none of {', '.join(NodeState)}") from exc


def layers_of(message: common_pb2.LayerRange) -> LayerRange:
    return LayerRange(message.start, message.stop)


def node_id_of(value: str) -> str:
    return bounded_text("node_id", value, MAX_ID_CHARS)


def bounded_text(what: str, value: str, max_chars: int) -> str:
    if not value or len(value) > max_chars or not value.isprintable():
        raise UsageError(f"{what} {value[:80]!r}: expected 1 to {max_chars} printable characters")
    return value


def endpoint_of(what: str, message: common_pb2.Endpoint, peer: str) -> Endpoint:
    """Where others can dial. Who listens on every interface is dialled at the address it called from."""
    host = bounded_text(f"{what} host", message.host, MAX_HOST_CHARS)
    if not 1 <= message.port <= 65535:
        raise UsageError(f"{what} port {message.port}: expected 1 to 65535")
    return (peer_host(peer) if is_wildcard(host) else host, message.port)


def peer_host(peer: str) -> str:
    """``ipv4:10.0.0.2:51234`` or ``ipv6:%5B::1%5D:51234``, as gRPC names who is calling."""
    return parse_endpoint(unquote(peer.partition(":")[2]), what="peer")[0]


def wire_node(node: Node, license_acceptance: bytes) -> coordinator_pb2.FleetNode:
    message = coordinator_pb2.FleetNode(
        node_id=node.node_id,
        name=node.name,
        layers=common_pb2.LayerRange(start=node.layers.start, stop=node.layers.stop),
        state=coordinator_pb2.NodeState.Value(node.state.upper()),  # type: ignore[arg-type]
        license_acceptance=license_acceptance,
    )
    if node.report.stage is not None:
        host, port = node.report.stage
        message.stage.CopyFrom(common_pb2.Endpoint(host=host, port=port))
    return message


def wire_peers(peers: Iterable[Endpoint]) -> list[common_pb2.Endpoint]:
    return [common_pb2.Endpoint(host=host, port=port) for host, port in peers]
