"""Releases that come and go while the coordinator runs, as ``mesh-coordinator release add|remove`` asks.

The commands write rows, this looks at them every second: no door has to be open for it, and a restart serves what was
served before. What cannot be served is said once, loudly, and ends nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from coordinator.hosting import Hosted, Hosting
from coordinator.journal import Journal
from coordinator.served_catalog import ServedCatalog
from coordinator.state import ReleaseRecord, StateStore
from coordinator.verified_release import host, verify
from mesh.clock import Clock
from mesh.errors import MeshError, UsageError
from mesh.weights.trust.manifest import Manifest, ShardRef
from mesh.weights.trust.revocation import ReleaseRevoked, RevocationsStale
from mesh.weights.trust.signing import TrustRoot

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


class Releasing:
    def __init__(
        self,
        hosting: Hosting,
        state: StateStore,
        trust: TrustRoot,
        lease_seconds: float,
        clock: Clock,
        catalog: ServedCatalog | None = None,
        max_session_tokens: int | None = None,
    ) -> None:
        self._hosting, self._state, self._trust, self._catalog = hosting, state, trust, catalog
        self._lease_seconds, self._clock = lease_seconds, clock
        self._max_session_tokens = max_session_tokens
        self._journal = Journal(state, clock)
        self._seen: set[ReleaseRecord] = set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except MeshError as exc:
                logger.error("could not look for new releases", extra={"reason": str(exc)})

    async def look(self) -> None:
        for record in await self._state.releases():
            if record not in self._seen:
                self._seen.add(record)
                await (self._remove(record) if record.removed is not None else self._add(record))
        await self._obey_revocations()
        for hosted in self._hosting.abandoned():
            await self._end(hosted, "every node has moved to the newer version")

    async def _obey_revocations(self) -> None:
        """Stop routing at once to whatever was revoked: a whole release, or the nodes that hold a revoked shard."""
        for hosted in self._hosting.all if self._catalog is not None else ():
            manifest = hosted.offered.manifest
            try:
                self._check_revoked(manifest, [manifest.shard("aux")])
            except ReleaseRevoked as exc:
                self._hosting.remove(hosted.release_id)  # at once; ending its answers may take a moment
                await self._state.note("release revoked", hosted.release_id, str(exc), self._clock.wall())
                await hosted.close()
                logger.error("release revoked", extra={**_extra(hosted), "reason": str(exc)})
                continue
            now = self._clock.monotonic()
            for node in hosted.membership.view(now).nodes:
                try:
                    self._check_revoked(manifest, manifest.shards_for(node.layers))
                except ReleaseRevoked as exc:
                    await self._journal.write(hosted.membership.leave(node.node_id, node.incarnation, now))
                    await self._state.note("shard revoked", node.node_id, str(exc), self._clock.wall())

    def _check_revoked(self, manifest: Manifest, shards: Sequence[ShardRef]) -> None:
        """Raises ReleaseRevoked. A stale list ends nothing that runs; it lets nothing new in."""
        assert self._catalog is not None
        with suppress(RevocationsStale):
            self._catalog.check_revoked(manifest, shards)

    async def _add(self, record: ReleaseRecord) -> None:
        if any(hosted.release_id == record.release_id for hosted in self._hosting.all):
            return
        try:
            trust = self._catalog.trust() if self._catalog is not None else self._trust
            verified = await asyncio.to_thread(verify, Path(record.directory), trust, self._catalog)
            if verified.release.manifest.release_id != record.release_id:
                raise UsageError(
                    f"{record.directory} holds another release than when it was added; add it again"
                )
            hosted = host(
                verified,
                self._trust,
                self._lease_seconds,
                self._clock,
                max_session_tokens=self._max_session_tokens,
                at_once=record.replaces_at_once,
            )
        except MeshError as exc:
            logger.error("release not served", extra={"directory": record.directory, "reason": str(exc)})
            return
        self._hosting.add(hosted)
        logger.info("release served", extra=_extra(hosted))

    async def _remove(self, record: ReleaseRecord) -> None:
        for hosted in self._hosting.all:
            if hosted.release_id == record.release_id:
                await self._end(hosted, "the operator removed it")

    async def _end(self, hosted: Hosted, reason: str) -> None:
        self._hosting.remove(hosted.release_id)
        await hosted.close()
        logger.info("release no longer served", extra={**_extra(hosted), "reason": reason})


def _extra(hosted: Hosted) -> dict[str, str]:
    return {"model": hosted.model.name, "release": hosted.release_id[:16]}
