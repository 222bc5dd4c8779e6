"""A node keeps its place through a lost coordinator, comes back after being forgotten, and gives up when refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from mesh.errors import NotAuthorised, NotFound, Unreachable
from mesh.wire import common_pb2, coordinator_pb2
from node.beside import beside
from node.membership import Membership, NodeStatus, Superseded

LEASE = coordinator_pb2.Lease(seconds=0.15, peers=[common_pb2.Endpoint(host="127.0.0.1", port=7001)])


class ScriptedCoordinator:
    """Answers heartbeats from a script; after its end every heartbeat renews."""

    def __init__(self, *script: BaseException) -> None:
        self._script = list(script)
        self.heard: list[coordinator_pb2.HeartbeatRequest] = []

    async def heartbeat(self, request: coordinator_pb2.HeartbeatRequest) -> coordinator_pb2.Lease:
        self.heard.append(request)
        if self._script:
            raise self._script.pop(0)
        return LEASE


def member(
    coordinator: ScriptedCoordinator, status: NodeStatus, rejoin: Callable[[], object] | None = None
) -> Membership:
    async def again() -> coordinator_pb2.Lease:
        if rejoin is not None:
            rejoin()
        return LEASE

    return Membership(coordinator, status, again, LEASE, [])  # type: ignore[arg-type]


async def test_report_returns_once_the_coordinator_has_heard_the_new_state() -> None:
    coordinator, status = ScriptedCoordinator(Unreachable("not yet")), NodeStatus()
    membership = member(coordinator, status)
    async with beside(membership.run(), name="membership"), asyncio.timeout(10):
        status.state = coordinator_pb2.READY
        await membership.report()
    assert coordinator.heard[-1].state == coordinator_pb2.READY
    assert membership.peers == [("127.0.0.1", 7001)]


async def test_forgotten_node_joins_again_and_goes_on() -> None:
    rejoined: list[None] = []
    coordinator, status = ScriptedCoordinator(NotFound("no lease")), NodeStatus()
    membership = member(coordinator, status, lambda: rejoined.append(None))
    async with beside(membership.run(), name="membership"), asyncio.timeout(10):
        await membership.report()
    assert len(rejoined) == 1


async def test_coordinator_that_will_not_have_us_back_ends_the_node_with_its_reason() -> None:
    def refuse() -> None:
        raise NotAuthorised("token revoked")

    membership = member(ScriptedCoordinator(NotFound("no lease")), NodeStatus(), refuse)
    with pytest.raises(NotAuthorised, match="token revoked"):
        async with beside(membership.run(), name="membership"), asyncio.timeout(10):
            await asyncio.get_running_loop().create_future()


async def test_cancelled_node_is_cancelled_and_not_failed() -> None:
    membership = member(ScriptedCoordinator(), NodeStatus())

    async def serve() -> None:
        async with beside(membership.run(), name="membership"):
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(serve())
    await membership.report()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_node_of_an_old_version_is_told_to_join_again() -> None:
    class Successor(ScriptedCoordinator):
        async def heartbeat(self, request: coordinator_pb2.HeartbeatRequest) -> coordinator_pb2.Lease:
            return coordinator_pb2.Lease(seconds=0.15, is_superseded=True)

    membership = member(Successor(), NodeStatus())
    with pytest.raises(Superseded, match="newer version"):
        async with beside(membership.run(), name="membership"), asyncio.timeout(10):
            await asyncio.get_running_loop().create_future()
