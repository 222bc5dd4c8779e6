"""Staying a member: heartbeats that renew the lease, and coming back after the coordinator forgot us.

Runs beside fetching, loading and serving, so that a slow download never looks like a dead node.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mesh.errors import MeshError, NotFound, Temporary, Unreachable
from mesh.wire import common_pb2, coordinator_pb2
from node.coordinator_client import CoordinatorClient, endpoints

logger = logging.getLogger(__name__)

_RENEWALS_PER_LEASE = 3  # two heartbeats may be lost before the lease ends
_RETRY_SECONDS = 1.0


class Superseded(Temporary):
    """The release is not served any more, or a newer version takes its place: leave, and ask for an offer again."""


@dataclass(slots=True)
class NodeStatus:
    """How far we are; written by the join story, read by every heartbeat."""

    state: coordinator_pb2.NodeState = coordinator_pb2.FETCHING
    progress: float = 0.0
    stage: tuple[str, int] | None = None
    swarm: tuple[str, int] | None = None
    fetched_bytes: int = 0
    redundant_bytes: int = 0
    kv_tokens_free: Callable[[], int] = field(default=lambda: 0)
    num_sessions: Callable[[], int] = field(default=lambda: 0)
    steps_computed: Callable[[], int] = field(default=lambda: 0)

    def to_request(self) -> coordinator_pb2.HeartbeatRequest:
        request = coordinator_pb2.HeartbeatRequest(
            state=self.state,
            progress=self.progress,
            kv_tokens_free=self.kv_tokens_free(),
            sessions=self.num_sessions(),
            steps_computed=self.steps_computed(),
            fetched_bytes=self.fetched_bytes,
            redundant_bytes=self.redundant_bytes,
        )
        if self.stage is not None:
            request.stage.CopyFrom(common_pb2.Endpoint(host=self.stage[0], port=self.stage[1]))
        if self.swarm is not None:
            request.swarm.CopyFrom(common_pb2.Endpoint(host=self.swarm[0], port=self.swarm[1]))
        return request


class Membership:
    """Renews the lease until cancelled; ``peers`` is what the coordinator last told us of the swarm."""

    def __init__(
        self,
        client: CoordinatorClient,
        status: NodeStatus,
        rejoin: Callable[[], Awaitable[coordinator_pb2.Lease]],
        lease: coordinator_pb2.Lease,
        peers: list[tuple[str, int]],
        on_lease: Callable[[coordinator_pb2.Lease], None] = lambda lease: None,
    ) -> None:
        self._client, self._status, self._rejoin = client, status, rejoin
        self._lease_seconds, self._on_lease = lease.seconds, on_lease
        self._changed = asyncio.Event()
        self._version = 0  # of the status; rises when somebody says that it changed
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self.peers = endpoints(lease.peers) or peers

    def report_soon(self) -> None:
        """Something worth telling has changed: do not wait for the next renewal."""
        self._version += 1
        self._changed.set()

    async def report(self) -> None:
        """Tell the coordinator how far we are and return once it has heard."""
        self.report_soon()
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._version, heard))
        await heard

    async def run(self) -> None:
        """Raises Superseded, NotAuthorised, UsageError, … if the coordinator will not have us as we are."""
        is_connected = True
        while True:
            wait = max(0.05, self._lease_seconds / _RENEWALS_PER_LEASE)
            version = self._version
            try:
                lease = await self._client.heartbeat(self._status.to_request())
                self._lease_seconds, self.peers = lease.seconds, endpoints(lease.peers)
                self._on_lease(lease)
                self._tell_heard(version)
                if lease.is_superseded:
                    raise Superseded("a newer version of the model is served")
                if not is_connected:
                    logger.info("coordinator is back")
                is_connected = True
            except Superseded:
                raise
            except NotFound:  # restarted, or our lease ended while we were cut off: take our layers again
                wait = await self._try_rejoin()
            except MeshError as exc:
                if is_connected:
                    logger.warning("coordinator lost, trying on", extra={"reason": str(exc)})
                is_connected, wait = False, _RETRY_SECONDS
            if version == self._version:  # nothing changed while we were talking
                self._changed.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _tell_heard(self, version: int) -> None:
        for wanted, heard in self._waiting:
            if wanted <= version and not heard.done():
                heard.set_result(None)
        self._waiting = [(wanted, heard) for wanted, heard in self._waiting if not heard.done()]

    async def _try_rejoin(self) -> float:
        """Seconds until the next try. A refusal that will not change by asking again is raised."""
        try:
            await self._rejoin()
            logger.info("joined again")
            return 0.05  # report our state at once
        except Superseded:
            raise
        except (Unreachable, Temporary) as exc:
            logger.warning("could not join again, trying on", extra={"reason": str(exc)})
            return _RETRY_SECONDS
