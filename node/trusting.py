"""Whom to believe: the first step of a join, before anything else in an offer is looked at.

The token (or a file that the volunteer brought) names one root of trust by its digest. That is either a plain list of
keys, believed for ever, or the root of a catalog: then the publisher's keys are what the catalog says today, and the
offered manifest must be the very one that it lists.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mesh.clock import Clock, SystemClock
from mesh.errors import IntegrityError
from mesh.weights.trust.catalog.client import CatalogClient
from mesh.weights.trust.catalog.names import is_catalog_root
from mesh.weights.trust.catalog.sources import Source
from mesh.weights.trust.signing import TrustRoot
from node.accepting import OfferedBytes
from node.catalog import NodeCatalog
from node.coordinator_client import CoordinatorClient


@dataclass(frozen=True, slots=True)
class Believed:
    """The keys a manifest must be signed by; ``catalog`` is None where a plain list of keys is believed."""

    keys: TrustRoot
    catalog: NodeCatalog | None = None


async def whom_to_believe(
    offer: OfferedBytes,
    *,
    trust_digest: bytes,
    brought: bytes | None,
    memory: Path,
    source: Source,
    clock: Clock | None = None,
) -> Believed:
    """Raises IntegrityError and kin; ``brought`` is what --trust names, ``memory`` where the catalog is remembered."""
    root = brought if brought is not None else _pinned(offer.trust_root, trust_digest)
    if not is_catalog_root(root):
        return Believed(TrustRoot.from_bytes(root))
    if not offer.catalog_path:
        raise IntegrityError(
            "the trusted root is a catalog's and this coordinator serves none; it must be started with --catalog"
        )
    catalog = NodeCatalog(CatalogClient(memory, root, source), clock if clock is not None else SystemClock())
    await catalog.refresh()
    release = await catalog.follow(offer.catalog_path)
    if release.envelope != offer.manifest:
        raise IntegrityError(
            f"the coordinator offers another manifest than the catalog lists as {offer.catalog_path}; "
            "it must be restarted with the release of today"
        )
    return Believed(release.trust, catalog)


def coordinator_source(client: CoordinatorClient, token_secret: bytes) -> Source:
    """The catalog's files by way of the coordinator; for a thread beside the running event loop."""
    loop = asyncio.get_running_loop()

    def read(name: str) -> Iterator[bytes]:
        call = client.catalog_file(token_secret, name)  # bounded in time, and by gRPC in size
        yield asyncio.run_coroutine_threadsafe(call, loop).result()

    return read


def _pinned(offered: bytes, digest: bytes) -> bytes:
    if hashlib.sha256(offered).digest() != digest:
        raise IntegrityError(
            "the coordinator's trust root is not the one in the join token; ask for a new token, or pass --trust FILE"
        )
    return offered
