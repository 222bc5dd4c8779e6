"""What a node does when what it serves is revoked: seeds no more, deletes what the list condemns, says so.

By now the stage is unloaded and the coordinator was told goodbye; the error that brought us here ends the process.
"""

from __future__ import annotations

import asyncio
import logging

from mesh.swarm.session import SwarmSession
from mesh.weights.releases.holdings import Holdings
from mesh.weights.trust.revocation import ReleaseRevoked

logger = logging.getLogger(__name__)


async def obey(revoked: ReleaseRevoked, swarm: SwarmSession, holdings: Holdings) -> None:
    await swarm.remove_all()
    if condemned := revoked.condemned:
        await asyncio.to_thread(holdings.condemn, revoked.manifest, condemned)
        logger.warning("revoked shards deleted", extra={"files": [ref.file for ref in condemned]})
    for hit in revoked.hits:
        entry = hit.revocation
        logger.error(
            "revoked, no longer served",
            extra={
                "kind": entry.kind,
                "id": entry.id,
                "reason": entry.reason,
                "action": entry.action,
                "case": entry.case_ref,
                "shards": len(hit.shards),
            },
        )
