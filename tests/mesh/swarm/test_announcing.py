from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from mesh.cli.announcing import (
    FIRST_RETRY_SECONDS,
    LONGEST_RETRY_SECONDS,
    address_towards,
    announcement,
    keep_announced,
    retry_delays,
)
from mesh.errors import NotAuthorised
from mesh.wire import coordinator_pb2, coordinator_pb2_grpc
from mesh.wire.channel import server_options


class FakeCoordinator(coordinator_pb2_grpc.CoordinatorServicer):  # type: ignore[misc]
    """Takes every announcement, or refuses each with ``refusal``."""

    def __init__(self, refusal: str | None = None) -> None:
        self.heard: asyncio.Queue[coordinator_pb2.AnnounceRequest] = asyncio.Queue()
        self._refusal = refusal

    async def Announce(self, request: Any, context: Any) -> coordinator_pb2.AnnounceReply:
        if self._refusal is not None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, self._refusal)
        self.heard.put_nowait(request)
        return coordinator_pb2.AnnounceReply(seconds=0.2)


@asynccontextmanager
async def listening(coordinator: FakeCoordinator, port: int = 0) -> AsyncIterator[int]:
    server = grpc.aio.server(options=server_options())
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(coordinator, server)  # type: ignore[no-untyped-call]
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)


async def test_seeder_is_announced_again_and_again_and_after_the_coordinator_came_back() -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    async with listening(FakeCoordinator()) as port:
        pass  # a port where nobody listens yet
    target = f"127.0.0.1:{port}"
    request = announcement(b"s" * 16, "ab" * 32, "127.0.0.1", 7001)
    running = asyncio.create_task(keep_announced(target, request, said.put_nowait))
    try:
        async with asyncio.timeout(20):
            assert "does not answer" in await said.get()
            first = FakeCoordinator()
            async with listening(first, port):
                assert await said.get() == f"announced to the coordinator at {target}"
                heard = [await first.heard.get() for _ in range(3)]  # the lease of 0.2 s is renewed in time
            assert all(each == request for each in heard)

            assert "does not answer" in await said.get()
            second = FakeCoordinator()
            async with listening(second, port):
                assert (await second.heard.get()).peer_id == request.peer_id
                assert "announced" in await said.get()
        assert said.empty()  # a line per change, not per attempt
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_refused_token_ends_the_announcing() -> None:
    async with listening(FakeCoordinator("token unknown; ask for a new one")) as port:
        request = announcement(b"s" * 16, "ab" * 32, "127.0.0.1", 7001)
        with pytest.raises(NotAuthorised, match="token unknown"):
            await keep_announced(f"127.0.0.1:{port}", request, print)


def test_retries_slow_down_to_a_bound_and_never_come_in_step() -> None:
    longest = list(itertools.islice(retry_delays(lambda: 1.0), 20))
    shortest = list(itertools.islice(retry_delays(lambda: 0.0), 20))

    assert longest[0] == FIRST_RETRY_SECONDS
    assert longest[-1] == LONGEST_RETRY_SECONDS
    assert longest == sorted(longest)
    assert shortest == [delay / 2 for delay in longest]


def test_two_processes_never_share_a_peer_id() -> None:
    ids = {announcement(b"", "", "127.0.0.1", 1).peer_id for _ in range(10)}

    assert len(ids) == 10


def test_address_towards_loopback_is_loopback() -> None:
    assert address_towards("127.0.0.1:9") == "127.0.0.1"
