"""Composition root of ``mesh-node``: makes the real parts, owns signals, tears everything down in order."""

from __future__ import annotations

import logging
import sys

import torch

from mesh.clock import SystemClock
from mesh.locking import locked_directory
from mesh.model.engines import choose_engine
from mesh.stopping import run_until_signal
from mesh.swarm.session import SwarmSession, SwarmSettings
from mesh.weights.releases.holdings import Holdings
from mesh.weights.releases.store import ShardStore
from mesh.weights.trust import identity
from mesh.weights.trust.acceptance_book import AcceptanceBook
from mesh.wire.channel import listening_socket, open_channel, require_loopback
from node.capacity import resolve_device
from node.config import NodeConfig
from node.joining import join, new_incarnation
from node.parts import NodeParts
from node.reporting import ConsoleReporter, JsonReporter

logger = logging.getLogger(__name__)


def run(config: NodeConfig) -> int | None:
    """Join and serve until SIGTERM or SIGINT; returns 128 + the signal's number. Raises MeshError."""
    require_loopback(config.listen[0], what="--listen", insecure=config.insecure)
    require_loopback(config.swarm_listen[0], what="--swarm-listen", insecure=config.insecure)
    if config.insecure:
        sys.stderr.write(
            "WARNING: --insecure: whoever can reach this node can read and change what it computes\n"
        )
    listening_socket(
        config.listen, flag="--listen"
    ).close()  # a port in use is said now, not after the download
    with locked_directory(config.data, "mesh-node"):
        return run_until_signal(_tell(config))


async def _tell(config: NodeConfig) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    engine = choose_engine(config.engine, device)
    if engine.why_not_native is not None:
        logger.warning("torch computes, several times slower", extra={"reason": engine.why_not_native})
    key = identity.load_or_create(config.data)
    settings = SwarmSettings(
        listen_host=config.swarm_listen[0],
        port=config.swarm_listen[1],
        max_upload_bytes_per_second=config.max_upload_bytes_per_second,
        max_download_bytes_per_second=config.max_download_bytes_per_second,
        profile=config.profile,
    )
    node_id, incarnation = key.public.key_id, new_incarnation()
    async with SwarmSession(settings) as swarm, open_channel(config.coordinator) as channel:
        parts = NodeParts(
            key=key,
            incarnation=incarnation,
            device=device,
            engine=engine,
            channel=channel,
            swarm=swarm,
            holdings=Holdings(ShardStore(config.data / "shards"), quota_bytes=config.store_quota_bytes),
            licenses=AcceptanceBook(config.data),
            reporter=JsonReporter(node_id, incarnation) if config.json_events else ConsoleReporter(),
            clock=SystemClock(),
        )
        await join(parts, config)
