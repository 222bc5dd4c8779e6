"""The catalog that this coordinator serves: signed anew before it goes stale, and seen when somebody changed it on disk.

The operator changes the catalog with ``mesh catalog`` on this machine (or copies new files here); within a second the
online keys sign what changed, and the leases tell nodes that there is news. It is read as a node reads it, from the root
up, so that what this coordinator believes is what its nodes will. Knows nothing of gRPC.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from mesh.clock import Clock
from mesh.errors import IntegrityError, MeshError, NotFound
from mesh.weights.trust.catalog.client import CatalogClient, CatalogRelease, CatalogView
from mesh.weights.trust.catalog.names import ONLINE_ROLES, TAKEDOWN
from mesh.weights.trust.catalog.repository import Catalog
from mesh.weights.trust.catalog.sources import directory_source
from mesh.weights.trust.manifest import Manifest, ShardRef
from mesh.weights.trust.revocation import RevocationList, RevocationsStale
from mesh.weights.trust.signing import PrivateKey, TrustRoot

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # how soon a change on disk is seen
SIGN_SECONDS = 60.0  # how often the online roles' age is looked at
WARN_LIST_SECONDS = 2 * 86400.0  # before the revocation list does, which lives seven days
WARN_SECONDS = 7 * 86400.0  # before an offline role expires: it takes people to renew it


class ServedCatalog:
    def __init__(
        self, directory: Path, memory: Path, online_keys: Sequence[PrivateKey], clock: Clock
    ) -> None:
        """``memory`` remembers what was served last, as a node's does. Raises what ``refresh`` raises."""
        self._catalog, self._keys, self._clock = Catalog.open(directory, clock), tuple(online_keys), clock
        self._memory, self._source = memory, directory_source(directory)
        self._said: set[str] = set()
        self._revocations: RevocationList | None = None
        self._trouble: RevocationsStale | None = None
        self.refresh()

    @property
    def version(self) -> int:
        return self._view.version

    @property
    def view(self) -> CatalogView:
        return self._view

    @property
    def root_digest(self) -> bytes:
        """What join tokens pin from now on: the newest root."""
        return hashlib.sha256(self._catalog.root()).digest()

    def root_for(self, digest: bytes) -> bytes:
        """The root that somebody pinned once, else the newest; who pins another catalog's will see that it is not theirs."""
        return self._catalog.root_with_digest(digest) or self._catalog.root()

    def trust(self) -> TrustRoot:
        """The keys of every publisher: enough to open a release, which then has to be ``current``. Raises NotFound."""
        if not self._releases:
            raise NotFound(
                "the catalog lists no release that can be believed; publish one with: mesh catalog add"
            )
        return TrustRoot.of(
            *(key for release in self._releases.values() for key in release.trust.keys.values())
        )

    def current(self, release_id: str) -> CatalogRelease:
        """The release as the catalog has it now: a manifest that was signed anew is offered with its new signature."""
        if (found := self._releases.get(release_id)) is None:
            raise NotFound(
                f"release {release_id[:16]} is not in the catalog, or no longer; publish it with: mesh catalog add"
            )
        return found

    def check_revoked(self, manifest: Manifest, shards: Iterable[ShardRef]) -> None:
        """Raises ReleaseRevoked if any of these shards may not be served, RevocationsStale if nobody can say."""
        if self._trouble is not None:
            raise self._trouble
        if self._revocations is not None:
            signer = (
                self._releases[manifest.release_id].signer if manifest.release_id in self._releases else ""
            )
            self._revocations.check(manifest, signer, shards, self._clock.wall())

    @property
    def revocations_version(self) -> int:
        """0 where nothing was ever revoked."""
        return self._revocations.version if self._revocations is not None else 0

    def file(self, name: str) -> bytes:
        """Raises NotFound, also for whatever is no name of a catalog's file."""
        try:
            return self._catalog.file(name)
        except NotFound as exc:  # without where that would be on this machine
            raise NotFound(
                f"{name[:100]!r} is no file of a catalog, or this catalog has none of that name"
            ) from exc

    def look(self) -> bool:
        """Refresh if something changed on disk, or it is time to; whether it did."""
        due = self._clock.monotonic() - self._looked_at >= SIGN_SECONDS
        if not due and self._catalog.stamp() == self._stamp:
            return False
        self.refresh()
        return True

    def refresh(self) -> None:
        """Sign what has to be, then read it all as a node does. Raises CatalogRefused, CatalogExpired, NotFound."""
        self._looked_at, self._stamp = self._clock.monotonic(), self._catalog.stamp()
        if self._catalog.refresh(self._keys) is None:
            self._say_once(
                "the catalog's snapshot and timestamp have to be signed and their key is not here; "
                "give it with --online-key, or run: mesh catalog refresh"
            )
        self._stamp = self._catalog.stamp()
        self._view = CatalogClient(self._memory, self._catalog.root(1), self._source).refresh()
        try:
            self._revocations, self._trouble = self._view.revocation_list(), None
        except IntegrityError as exc:  # fail closed: what was revoked meanwhile is not known
            self._trouble = RevocationsStale(f"the revocation list cannot be believed now: {exc}")
            self._say_once(f"{self._trouble}; renew it with: mesh revoke --catalog DIR --refresh")
        self._releases = {release.manifest.release_id: release for release in self._view.releases()}
        for name, problem in self._view.problems.items():
            self._say_once(f"{name} in the catalog cannot be believed now: {problem}")
        self._warn_of_expiry()

    async def run(self) -> None:
        """Look again and again. Trouble is logged once; what was read last goes on being served, until it expires."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if await asyncio.to_thread(self.look):
                    logger.info("catalog read", extra={"version": self.version})
            except (MeshError, OSError) as exc:
                self._say_once(f"the catalog is as it was before: {exc}")

    def _warn_of_expiry(self) -> None:
        for row in self._catalog.status().roles:
            if row.role in ONLINE_ROLES or row.expires is None:
                continue
            if row.role == TAKEDOWN and self._revocations is not None:
                continue  # it lives as long as its list
            if row.expires.timestamp() - self._clock.wall() < WARN_SECONDS:
                self._say_once(
                    f"catalog role {row.role} expires {row.expires:%Y-%m-%d %H:%M} UTC; renew it with: mesh catalog renew"
                )

        if self._revocations is not None:
            left = self._revocations.expires_at - self._clock.wall()
            if left < WARN_LIST_SECONDS:
                self._say_once(
                    f"revocation list {self._revocations.version} expires {self._revocations.expires}; "
                    "renew it with: mesh revoke --catalog DIR --refresh"
                )

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning(text)
