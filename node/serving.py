"""A loaded stage behind its gRPC services, for as long as it serves: the last chapter of the join story."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from mesh.errors import MeshError
from mesh.model.engines import LoadedStage
from mesh.model.kv_cache import KvBudget
from mesh.model.prefill import PREFILL_CHUNK
from mesh.swarm.metainfo import piece_layers
from mesh.weights.trust.manifest import ShardRef
from mesh.wire import proof_pb2_grpc, stage_pb2_grpc
from mesh.wire.channel import bind_server, format_endpoint, server_options
from mesh.wire.tensors import StageContract
from node.accepting import AcceptedOffer
from node.catalog import NodeCatalog
from node.config import NodeConfig
from node.engine import Engine
from node.membership import NodeStatus
from node.parts import NodeParts
from node.proving import HeldShards, ProofService
from node.service import StageIdentity, StageService
from node.sessions import SessionTable

logger = logging.getLogger(__name__)


@asynccontextmanager
async def serving(
    stage: LoadedStage,
    paths: Mapping[ShardRef, Path],
    parts: NodeParts,
    config: NodeConfig,
    accepted: AcceptedOffer,
    status: NodeStatus,
    catalog: NodeCatalog | None,
) -> AsyncIterator[tuple[str, int]]:
    """The loaded stage behind its gRPC service; yields where it listens."""
    model = accepted.manifest.config
    sessions = SessionTable(KvBudget(config.kv_tokens), config.max_sessions, stage.new_cache)
    service = StageService(
        StageIdentity(
            parts.node_id,
            parts.incarnation,
            accepted.manifest.release_id,
            stage.kernel_id,
            accepted.layers,
            model.num_layers,
        ),
        StageContract(accepted.layers.is_first(), model.hidden_size, model.vocab_size, PREFILL_CHUNK),
        sessions,
        catalog.check if catalog is not None else lambda: None,
    )
    engine = Engine(
        stage, is_last=accepted.layers.is_last(model.num_layers), device=parts.device, on_done=service.on_done
    )
    service.attach(engine)
    engine.start()
    server = grpc.aio.server(options=server_options())
    stage_pb2_grpc.add_StageServicer_to_server(service, server)
    held = HeldShards(accepted.manifest, paths, piece_layers(accepted.torrent))
    proof_pb2_grpc.add_ProofServicer_to_server(ProofService(parts.key, held, parts.clock), server)
    try:
        host, port = config.listen[0], bind_server(server, config.listen, flag="--listen")
    except MeshError:
        await engine.stop()
        raise
    await server.start()
    status.stage = (host, port)
    status.kv_tokens_free = lambda: sessions.free_tokens
    status.num_sessions = lambda: len(sessions)
    status.steps_computed = lambda: engine.steps_computed
    logger.info(
        "stage ready",
        extra={
            "layers": str(accepted.layers),
            "endpoint": format_endpoint(host, port),
            "kernel": stage.kernel_id,
        },
    )
    try:
        yield host, port
    finally:
        await service.stop()
        await server.stop(grace=1.0)
        await engine.stop()
