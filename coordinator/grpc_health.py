"""``grpc.health.v1``: whether generation is possible, kept true while nodes come and go.

The empty name is the process as a whole, as the protocol says; both serve as soon as one model can answer. Whoever
watches is told within ``LOOK_SECONDS``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio

from coordinator.serving import MeshHealth

LOOK_SECONDS = 1.0
GENERATION = "mesh.wire.v1.Generation"


async def keep_true(servicer: aio.HealthServicer, health: Callable[[], MeshHealth]) -> None:
    """Until cancelled."""
    while True:
        await tell(servicer, health())
        await asyncio.sleep(LOOK_SECONDS)


async def tell(servicer: aio.HealthServicer, now: MeshHealth) -> None:
    status = health_pb2.HealthCheckResponse
    for name in ("", GENERATION):
        await servicer.set(name, status.SERVING if now.is_ready else status.NOT_SERVING)
