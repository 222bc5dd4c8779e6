"""The Coordinator service: convert in, decide, convert out.

Every field of a request is bounded before it becomes a value. Decisions are ``placement``'s and ``membership``'s; a
refusal is a MeshError, sent as a status that the other side turns back into the same error.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc.aio

from coordinator.join_tokens import admit
from coordinator.journal import Journal
from coordinator.license_desk import LicenseDesk
from coordinator.membership import Membership
from coordinator.node_messages import (
    MAX_ID_CHARS,
    applicant_of,
    bounded_text,
    capacity_of,
    check_protocol,
    endpoint_of,
    layers_of,
    node_id_of,
    report_of,
    wire_node,
    wire_peers,
)
from coordinator.placement import Capacity
from coordinator.served_catalog import ServedCatalog
from coordinator.state import StateStore
from mesh.architecture import LlamaConfig
from mesh.clock import Clock
from mesh.errors import MeshError, NotFound, Temporary
from mesh.layers import LayerRange
from mesh.weights.trust.license_text import LicenseTexts
from mesh.weights.trust.manifest import Manifest
from mesh.wire import common_pb2, coordinator_pb2, coordinator_pb2_grpc
from mesh.wire.status import status_of

logger = logging.getLogger(__name__)


Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])


@dataclass(frozen=True, slots=True)
class OfferedRelease:
    """What a newcomer is given to check, byte for byte as it was published."""

    manifest: Manifest
    trust_root: bytes
    envelope: bytes
    torrent: bytes
    texts: LicenseTexts
    twin_torrent: bytes = b""  # empty: the release has no encoded twins

    @property
    def release_id(self) -> str:
        return self.manifest.release_id

    @property
    def config(self) -> LlamaConfig:
        return self.manifest.config


class HostedRelease(Protocol):
    """One of them, as nodes see it."""

    @property
    def offered(self) -> OfferedRelease: ...
    @property
    def membership(self) -> Membership: ...


H = TypeVar("H", bound=HostedRelease)


class Releases(Protocol[H]):
    """What is served here; ``hosting.Hosting`` implements it."""

    def of(self, release_id: str) -> H:
        """Raises NotFound."""

    def find(self, text: str) -> H:
        """By name or id; the only one for an empty text. Raises NotFound, UsageError."""

    def of_node(self, node_id: str, incarnation: int) -> H:
        """Where the node holds layers or was offered some. Raises NotFound."""

    def choose(self, node_id: str, capacity: Capacity, model: str, release_id: str) -> tuple[H, LayerRange]:
        """What a newcomer is offered; empty texts insist on nothing."""

    def should_move(self, hosted: H, node_id: str) -> bool:
        """Whether the node shall join again, for a newer version of its model."""


def refusing(method: Method) -> Method:
    """A MeshError raised by the method ends the call with the status that stands for it."""

    @functools.wraps(method)
    async def answer(self: Any, request: Any, context: Any) -> Any:
        try:
            return await method(self, request, context)
        except MeshError as exc:
            # Whoever follows a catalog asks for the next root until there is none: that is how it ends, no refusal.
            if not (method.__name__ == "CatalogFile" and isinstance(exc, NotFound)):
                logger.info("refused", extra={"call": method.__name__, "reason": str(exc)})
            await context.abort(*status_of(exc))

    return answer  # type: ignore[return-value]


class CoordinatorService(coordinator_pb2_grpc.CoordinatorServicer):
    def __init__(
        self, releases: Releases[Any], state: StateStore, clock: Clock, catalog: ServedCatalog | None = None
    ) -> None:
        self._releases, self._state, self._clock, self._catalog = releases, state, clock, catalog
        self._journal = Journal(state, clock)
        self._licenses = LicenseDesk(state, clock)

    @refusing
    async def RequestOffer(  # noqa: N802 - the proto's name
        self, request: coordinator_pb2.OfferRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> coordinator_pb2.Offer:
        check_protocol(request.protocol, request.version)
        await self._authorize(request.token_secret)
        applicant, capacity = applicant_of(request), capacity_of(request)
        now = self._clock.monotonic()
        hosted, layers = self._releases.choose(applicant.node_id, capacity, request.model, request.release_id)
        hosted.membership.offer(applicant, layers, now)
        release = hosted.offered
        logger.info(
            "layers offered",
            extra={"node": applicant.name, "layers": str(layers), "release": release.release_id[:16]},
        )
        offer = coordinator_pb2.Offer(
            release_id=release.release_id,
            trust_root=release.trust_root,
            manifest=release.envelope,
            torrent=release.torrent,
            twin_torrent=release.twin_torrent,
            license_text=release.texts.license,
            license_notice=release.texts.notice,
            license_policy=release.texts.policy,
            layers=common_pb2.LayerRange(start=layers.start, stop=layers.stop),
            peers=wire_peers(hosted.membership.peers(now, excluding=applicant.node_id)),
        )
        if self._catalog is not None:
            _add_catalog(offer, release.release_id, self._catalog, request.trust_digest)
            offer.catalog_version = self._catalog.version
        return offer

    @refusing
    async def AcceptOffer(  # noqa: N802
        self, request: coordinator_pb2.Acceptance, context: grpc.aio.ServicerContext[Any, Any]
    ) -> coordinator_pb2.Lease:
        hosted = self._releases.of(request.release_id)
        now, node_id = self._clock.monotonic(), node_id_of(request.node_id)
        # Only who was offered something is worth a line of the audit trail.
        hosted.membership.check_known(node_id, request.incarnation, now)
        self._check_revocations(hosted.offered.manifest, request)
        await self._licenses.admit(hosted.offered.manifest, node_id, request.license_acceptance)
        changes = hosted.membership.accept(
            node_id, request.incarnation, layers_of(request.layers), request.memory_bytes, now
        )
        await self._journal.write(changes)
        return self._lease(hosted, request.node_id, now)

    @refusing
    async def Heartbeat(  # noqa: N802
        self, request: coordinator_pb2.HeartbeatRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> coordinator_pb2.Lease:
        now = self._clock.monotonic()
        report = report_of(request, context.peer())
        hosted = self._releases.of_node(node_id_of(request.node_id), request.incarnation)
        changes = hosted.membership.heartbeat(request.node_id, request.incarnation, report, now)
        await self._journal.write(changes)
        lease = self._lease(hosted, request.node_id, now)
        if self._releases.should_move(hosted, request.node_id):
            hosted.membership.suspect(request.node_id, request.incarnation)  # no new answer begins there
            lease.is_superseded = True
        return lease

    @refusing
    async def Leave(  # noqa: N802
        self, request: coordinator_pb2.LeaveRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> coordinator_pb2.LeaveReply:
        now = self._clock.monotonic()
        try:
            hosted = self._releases.of_node(node_id_of(request.node_id), request.incarnation)
        except NotFound:  # a goodbye that comes late
            return coordinator_pb2.LeaveReply()
        changes = hosted.membership.leave(request.node_id, request.incarnation, now)
        await self._journal.write(changes)
        return coordinator_pb2.LeaveReply()

    @refusing
    async def Announce(  # noqa: N802
        self, request: coordinator_pb2.AnnounceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> coordinator_pb2.AnnounceReply:
        check_protocol(request.protocol, "")
        await self._authorize(request.token_secret)
        membership = self._releases.of(request.release_id).membership
        peer_id = bounded_text("peer_id", request.peer_id, MAX_ID_CHARS)
        endpoint = endpoint_of("swarm", request.swarm, context.peer())
        now = self._clock.monotonic()
        membership.announce(peer_id, endpoint, now)
        return coordinator_pb2.AnnounceReply(
            seconds=membership.lease_seconds,
            peers=wire_peers(membership.peers(now, excluding=peer_id)),
        )

    @refusing
    async def GetRelease(  # noqa: N802
        self, request: coordinator_pb2.ReleaseRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> coordinator_pb2.ReleaseReply:
        check_protocol(request.protocol, "")
        await self._authorize(request.token_secret)
        hosted = self._releases.find(request.release[:MAX_ID_CHARS])
        release = hosted.offered
        reply = coordinator_pb2.ReleaseReply(
            trust_root=release.trust_root,
            manifest=release.envelope,
            torrent=release.torrent,
            license_text=release.texts.license,
            license_notice=release.texts.notice,
            license_policy=release.texts.policy,
            twin_torrent=release.twin_torrent,
            peers=wire_peers(hosted.membership.peers(self._clock.monotonic(), excluding="")),
        )
        if self._catalog is not None:
            _add_catalog(reply, release.release_id, self._catalog, request.trust_digest)
        return reply

    @refusing
    async def CatalogFile(  # noqa: N802
        self, request: coordinator_pb2.CatalogFileRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> coordinator_pb2.CatalogFileReply:
        if not self._holds_lease(request.node_id, request.incarnation):
            await self._authorize(request.token_secret)
        if self._catalog is None:
            raise NotFound("this coordinator has no catalog; it was started without --catalog")
        return coordinator_pb2.CatalogFileReply(
            data=await asyncio.to_thread(self._catalog.file, request.name)
        )

    def _holds_lease(self, node_id: str, incarnation: int) -> bool:
        """A member refreshes its catalog even when its token has ended: it must learn of what was revoked."""
        try:
            membership = self._releases.of_node(node_id, incarnation).membership
        except NotFound:
            return False
        nodes = membership.view(self._clock.monotonic()).nodes
        return any((node.node_id, node.incarnation) == (node_id, incarnation) for node in nodes)

    @refusing
    async def Fleet(  # noqa: N802
        self, request: coordinator_pb2.FleetRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> coordinator_pb2.FleetReply:
        check_protocol(request.protocol, "")
        await self._authorize(request.token_secret)
        hosted = self._releases.find(request.release)
        accepted = await self._state.acceptance_records(hosted.offered.release_id)
        nodes = hosted.membership.view(self._clock.monotonic()).nodes
        return coordinator_pb2.FleetReply(
            release_id=hosted.offered.release_id,
            manifest=hosted.offered.envelope,
            nodes=[wire_node(node, accepted.get(node.node_id, b"")) for node in nodes],
        )

    def _check_revocations(self, manifest: Manifest, request: coordinator_pb2.Acceptance) -> None:
        """Raises Temporary for a node that knows an older list, ReleaseRevoked or RevocationsStale as it must itself."""
        if self._catalog is None:
            return
        if request.revocations_version < self._catalog.revocations_version:
            raise Temporary(
                f"the node knows revocation list {request.revocations_version}, here is "
                f"{self._catalog.revocations_version}; refresh the catalog and ask again"
            )
        self._catalog.check_revoked(manifest, manifest.shards_for(layers_of(request.layers)))

    async def _authorize(self, secret: bytes) -> None:
        admit(await self._state.tokens(), secret, self._clock.wall())

    def _lease(self, hosted: HostedRelease, node_id: str, now: float) -> coordinator_pb2.Lease:
        return coordinator_pb2.Lease(
            seconds=hosted.membership.lease_seconds,
            peers=wire_peers(hosted.membership.peers(now, excluding=node_id)),
            catalog_version=self._catalog.version if self._catalog is not None else 0,
        )


def _add_catalog(
    reply: coordinator_pb2.Offer | coordinator_pb2.ReleaseReply,
    release_id: str,
    catalog: ServedCatalog,
    pinned: bytes,
) -> None:
    """The manifest as the catalog has it now, and the root that the asker's token names."""
    current = catalog.current(release_id)
    reply.trust_root, reply.manifest = catalog.root_for(pinned), current.envelope
    reply.catalog_path = current.path
