"""What the coordinator listens with: the gRPC side for nodes, the HTTP side for clients, both in the daemon's loop.

Each is a context manager that yields where it listens; leaving it stops it within seconds. A port that is taken is a
MeshError naming the flag to change. Knows sockets and servers; nothing of what they serve.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import grpc.aio
import uvicorn
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from starlette.types import ASGIApp

from coordinator.grpc_health import keep_true
from coordinator.serving import MeshHealth
from coordinator.topology import Endpoint
from mesh.wire import coordinator_pb2, coordinator_pb2_grpc, generation_pb2, generation_pb2_grpc
from mesh.wire.channel import bind_server, listening_socket, server_options

HTTP_STOP_SECONDS = 3  # for answers that were just told of the end; then their connections are cut
GRPC_STOP_SECONDS = 1.0
SERVICES = (  # as reflection tells them
    coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"].full_name,
    generation_pb2.DESCRIPTOR.services_by_name["Generation"].full_name,
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
)


@asynccontextmanager
async def serving_grpc(
    endpoint: Endpoint,
    nodes: coordinator_pb2_grpc.CoordinatorServicer,
    generation: generation_pb2_grpc.GenerationServicer,
    health: Callable[[], MeshHealth],
) -> AsyncIterator[Endpoint]:
    """The gRPC side, for nodes and for clients; says of itself what it serves. Raises MeshError if it cannot listen."""
    server = grpc.aio.server(options=server_options())
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(nodes, server)
    generation_pb2_grpc.add_GenerationServicer_to_server(generation, server)
    servicer = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection((*SERVICES, reflection.SERVICE_NAME), server)
    port = bind_server(server, endpoint, flag="--grpc")
    await server.start()
    watching = asyncio.create_task(keep_true(servicer, health), name="grpc health")
    try:
        yield endpoint[0], port
    finally:
        watching.cancel()
        await server.stop(GRPC_STOP_SECONDS)


@asynccontextmanager
async def serving_clients(
    endpoint: Endpoint, app: ASGIApp, end_answers: Callable[[], Awaitable[None]]
) -> AsyncIterator[tuple[Endpoint, asyncio.Task[None]]]:
    """The HTTP side; yields the task that serves beside the address. Raises MeshError if it cannot listen there.

    ``end_answers`` is called while it stops: it has to end whatever is being answered, so that clients are told.
    """
    with listening_socket(endpoint, flag="--listen") as listener:
        server = _HttpServer(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,  # generation logs one line per answer, without what was said
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=HTTP_STOP_SECONDS,
            )
        )
        task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
        try:
            yield (endpoint[0], listener.getsockname()[1]), task
        finally:
            server.should_exit = True  # no new connections; then each open answer gets its error and ends
            await end_answers()
            await task


class _HttpServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the daemon's."""
        yield
