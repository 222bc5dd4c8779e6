"""The catalog as this node sees it: pinned by its token, refreshed through its coordinator, believed as far as signed.

While the node serves, every lease may say that there is news; the catalog is then refreshed within that heartbeat. A node
that cannot refresh, or whose release is no longer listed, opens no new session: ``check`` says why. What runs goes on.

    catalog = NodeCatalog(CatalogClient(data / "catalog", pinned_root, source), clock)
    await catalog.refresh()
    release = await catalog.follow(offer.catalog_path)

Knows nothing of gRPC beyond the source it is given.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

from mesh.clock import Clock
from mesh.errors import CatalogExpired, IntegrityError, MeshError, NotFound
from mesh.weights.trust.catalog.client import CatalogClient, CatalogRelease, CatalogView
from mesh.weights.trust.manifest import Manifest, ShardRef
from mesh.weights.trust.revocation import ReleaseRevoked, RevocationList

logger = logging.getLogger(__name__)

GRACE_SECONDS = 24 * 3600.0  # a coordinator may be away for a night without the mesh going silent
JUDGE_SECONDS = 5.0
RETRY_SECONDS = 30.0  # after a refresh that failed, unless there is news before

OnView = Callable[[CatalogView], None]


class NodeCatalog:
    """``on_view`` is called with every state that was verified, from the thread of the event loop."""

    def __init__(self, client: CatalogClient, clock: Clock, on_view: OnView = lambda view: None) -> None:
        self._client, self._clock, self._on_view = client, clock, on_view
        self._view: CatalogView | None = None
        self._release: CatalogRelease | None = None
        self._trouble: MeshError | None = None  # why the release may not be served any more
        self._told_version = 0  # by the last lease
        self._news = asyncio.Event()
        self._revocations: RevocationList | None = None
        self._guarded: tuple[Manifest, tuple[ShardRef, ...]] | None = None  # what this node serves
        self._refreshed = asyncio.Event()

    @property
    def view(self) -> CatalogView:
        """What was verified last."""
        assert self._view is not None, "refresh first"
        return self._view

    async def refresh(self) -> CatalogView:
        """Raises CatalogRefused, CatalogExpired, Unreachable; what was seen before then stays in force until it expires."""
        view = await asyncio.to_thread(self._client.refresh)
        self._revocations = await asyncio.to_thread(view.revocation_list)
        if self._release is not None:
            await self._look_for_release(view)
        self._view = view
        self._on_view(view)
        self._refreshed.set()
        return view

    async def follow(self, path: str) -> CatalogRelease:
        """The release at that path, which from now on has to stay listed. Raises NotFound, CatalogRefused and kin."""
        self._release = await asyncio.to_thread(self.view.release, path)
        return self._release

    def on_lease(self, catalog_version: int) -> None:
        """The coordinator says which version there is. It is believed in nothing but that looking is worth while."""
        if catalog_version not in (0, self._told_version):
            self._told_version = catalog_version
            if self._view is None or catalog_version != self._view.version:
                self._news.set()

    def check(self) -> None:
        """Whether a new session may open. Raises the reason why not."""
        if self._revocations is not None:
            self._revocations.check_fresh(self._clock.wall())
        if self._trouble is not None:
            raise self._trouble
        if self._release is None or self._clock.wall() <= self._fresh_until() + GRACE_SECONDS:
            return
        raise CatalogExpired(
            "the catalog has expired and no newer one came, so nobody can say whether this release may still be "
            "served; the coordinator must be reachable and its catalog renewed"
        )

    @property
    def revocations_version(self) -> int:
        """0 where nothing was ever revoked."""
        return self._revocations.version if self._revocations is not None else 0

    def guard(self, manifest: Manifest, shards: Iterable[ShardRef]) -> None:
        """These shards of the followed release must not be revoked, from now on. Raises as ``judge`` does."""
        self._guarded = (manifest, tuple(shards))
        if self._revocations is not None:
            self._revocations.check_fresh(self._clock.wall())
        self.judge()

    def judge(self) -> None:
        """Raises ReleaseRevoked if what is guarded was revoked. (That the list is fresh is ``check``'s matter: what runs
        goes on a while when nobody can say.)"""
        if self._guarded is None or self._revocations is None:
            return
        assert self._release is not None, "follow first"
        manifest, shards = self._guarded
        if hits := self._revocations.hits(manifest, self._release.signer, shards, self._clock.wall()):
            raise ReleaseRevoked(manifest, hits)

    async def watch(self) -> None:
        """Judge after every refresh, and again and again since an entry may begin to hold later. Ends by raising."""
        while True:
            self.judge()
            self._refreshed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(JUDGE_SECONDS):
                    await self._refreshed.wait()

    async def run(self) -> None:
        """Refresh whenever there is news, and again after trouble, until cancelled."""
        wait: float | None = None
        while True:
            try:
                async with asyncio.timeout(wait):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()
            try:
                view = await self.refresh()
                logger.info("catalog refreshed", extra={"version": view.version})
                wait = None
            except MeshError as exc:
                logger.warning("catalog not refreshed, trying on", extra={"reason": str(exc)})
                wait = RETRY_SECONDS

    def _fresh_until(self) -> float:
        assert self._view is not None
        assert self._release is not None
        return min(self._view.fresh_until, self._release.fresh_until)

    async def _look_for_release(self, view: CatalogView) -> None:
        """Listed still, under whatever signature, or followed by a newer release of its name: go on, the coordinator says
        when to move. Otherwise no new sessions, until it is listed again."""
        assert self._release is not None
        followed = self._release
        try:
            release = await asyncio.to_thread(view.release, followed.path)
        except (NotFound, IntegrityError) as exc:
            if self._trouble is None:
                logger.error(
                    "the catalog no longer has this release; no new sessions", extra={"reason": str(exc)}
                )
            self._trouble = exc
            return
        self._trouble = None
        is_same = release.manifest.release_id == followed.manifest.release_id
        self._release = release if is_same else replace(followed, fresh_until=release.fresh_until)
