"""The node's side of the Coordinator service: one method per call, foreign errors turned into ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc.aio

from mesh import __version__
from mesh.errors import Unreachable
from mesh.layers import LayerRange
from mesh.weights.trust.license_text import LicenseTexts
from mesh.wire import common_pb2, coordinator_pb2, coordinator_pb2_grpc
from mesh.wire.protocol import VERSION
from mesh.wire.status import error_from
from node.accepting import Limits, OfferedBytes

_CALL_SECONDS = 10.0
_RETRY_SECONDS = 0.5

T = TypeVar("T")


class CoordinatorClient:
    def __init__(self, channel: grpc.aio.Channel, target: str, *, node_id: str, incarnation: int) -> None:
        self._stub: Any = coordinator_pb2_grpc.CoordinatorStub(channel)
        self._target, self._node_id, self._incarnation = target, node_id, incarnation

    async def request_offer(
        self,
        *,
        token_secret: bytes,
        name: str,
        kernel_id: str,
        limits: Limits,
        release_id: str = "",
        wait_seconds: float,
        trust_digest: bytes = b"",
    ) -> tuple[OfferedBytes, list[tuple[str, int]]]:
        """The offer, of that release if one is named, and the BitTorrent peers to fetch from.

        A coordinator that does not answer is asked again for ``wait_seconds``. Raises Unreachable, NotAuthorised,
        NotEnoughMemory and whatever else the coordinator refuses with.
        """
        capacity = coordinator_pb2.Capacity(memory_bytes=limits.memory_bytes, disk_bytes=limits.disk_bytes)
        if limits.layers is not None:
            capacity.layers.CopyFrom(wire_layers(limits.layers))
        request = coordinator_pb2.OfferRequest(
            protocol=VERSION,
            version=__version__,
            token_secret=token_secret,
            node_id=self._node_id,
            name=name,
            incarnation=self._incarnation,
            capacity=capacity,
            kernel_id=kernel_id,
            kv_tokens=limits.kv_tokens,
            max_sessions=limits.max_sessions,
            model=limits.model or "",
            release_id=release_id,
            trust_digest=trust_digest,
        )
        deadline = asyncio.get_running_loop().time() + wait_seconds
        while True:
            try:
                offer = await self._call(self._stub.RequestOffer(request, timeout=_CALL_SECONDS))
                break
            except Unreachable as exc:
                if asyncio.get_running_loop().time() >= deadline:
                    raise Unreachable(
                        f"no coordinator answers at {self._target} ({exc}); "
                        "start one with mesh-coordinator up, or check the address in the join line"
                    ) from exc
                await asyncio.sleep(_RETRY_SECONDS)
        offered = OfferedBytes(
            offer.release_id,
            offer.trust_root,
            offer.manifest,
            offer.torrent,
            LayerRange(offer.layers.start, offer.layers.stop),
            LicenseTexts(offer.license_text, offer.license_notice or None, offer.license_policy or None),
            offer.twin_torrent,
            offer.catalog_path,
        )
        return offered, endpoints(offer.peers)

    async def accept_offer(
        self,
        release_id: str,
        layers: LayerRange,
        memory_bytes: int,
        license_acceptance: bytes,
        revocations_version: int = 0,
    ) -> coordinator_pb2.Lease:
        return await self._call(
            self._stub.AcceptOffer(
                coordinator_pb2.Acceptance(
                    node_id=self._node_id,
                    incarnation=self._incarnation,
                    release_id=release_id,
                    layers=wire_layers(layers),
                    memory_bytes=memory_bytes,
                    license_acceptance=license_acceptance,
                    revocations_version=revocations_version,
                ),
                timeout=_CALL_SECONDS,
            )
        )

    async def heartbeat(self, request: coordinator_pb2.HeartbeatRequest) -> coordinator_pb2.Lease:
        request.node_id, request.incarnation = self._node_id, self._incarnation
        return await self._call(self._stub.Heartbeat(request, timeout=_CALL_SECONDS))

    async def catalog_file(self, token_secret: bytes, name: str) -> bytes:
        """A file of the catalog; nothing of it is believed yet. Raises NotFound, Unreachable, NotAuthorised."""
        request = coordinator_pb2.CatalogFileRequest(
            token_secret=token_secret, node_id=self._node_id, incarnation=self._incarnation, name=name
        )
        reply = await self._call(self._stub.CatalogFile(request, timeout=_CALL_SECONDS))
        return bytes(reply.data)

    async def leave(self) -> None:
        await self._call(
            self._stub.Leave(
                coordinator_pb2.LeaveRequest(node_id=self._node_id, incarnation=self._incarnation),
                timeout=2.0,
            )
        )

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as exc:
            raise error_from(exc) from exc


def wire_layers(layers: LayerRange) -> common_pb2.LayerRange:
    return common_pb2.LayerRange(start=layers.start, stop=layers.stop)


def endpoints(peers: Any) -> list[tuple[str, int]]:
    return [(peer.host, peer.port) for peer in peers]
