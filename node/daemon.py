"""Composition root of ``mesh-node``: makes the real parts, owns signals, tears everything down in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from mesh.swarm.session import SwarmSession, SwarmSettings
from mesh.weights.store import ShardStore
from mesh.wire.channel import open_channel, require_loopback
from node import identity
from node.capacity import resolve_device
from node.config import NodeConfig
from node.joining import NodeParts, join, new_incarnation
from node.reporting import ConsoleReporter, JsonReporter

logger = logging.getLogger(__name__)


def run(config: NodeConfig) -> int:
    """Join and serve until SIGTERM or SIGINT; returns 128 + the signal's number. Raises MeshError."""
    require_loopback(config.listen[0], what="--listen", insecure=config.insecure)
    require_loopback(config.swarm_listen[0], what="--swarm-listen", insecure=config.insecure)
    if config.insecure:
        sys.stderr.write(
            "WARNING: --insecure: whoever can reach this node can read and change what it computes\n"
        )
    with identity.locked_data_directory(config.data):
        return asyncio.run(_until_signal(config))


async def _until_signal(config: NodeConfig) -> int:
    loop = asyncio.get_running_loop()
    story = asyncio.create_task(_tell(config), name="join")
    received: list[int] = []

    def on_signal(number: int) -> None:
        if received:
            os._exit(128 + number)  # asked twice: now means now
        received.append(number)
        logger.info("leaving", extra={"signal": signal.Signals(number).name})
        story.cancel()  # every `async with` of the story puts its part back in order

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await story
    except asyncio.CancelledError:
        if not received:
            raise
    return 128 + received[0]


async def _tell(config: NodeConfig) -> None:
    if config.threads is not None:
        import torch

        torch.set_num_threads(config.threads)
    key = identity.load_or_create(config.data)
    settings = SwarmSettings(
        listen_host=config.swarm_listen[0],
        port=config.swarm_listen[1],
        max_upload_bytes_per_second=config.max_upload_bytes_per_second,
    )
    node_id, incarnation = key.public.key_id, new_incarnation()
    async with SwarmSession(settings) as swarm, open_channel(config.coordinator) as channel:
        parts = NodeParts(
            node_id=node_id,
            incarnation=incarnation,
            device=resolve_device(config.device),
            channel=channel,
            swarm=swarm,
            store=ShardStore(config.data / "shards"),
            reporter=JsonReporter(node_id, incarnation) if config.json_events else ConsoleReporter(),
        )
        await join(parts, config)
