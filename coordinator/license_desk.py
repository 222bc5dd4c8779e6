"""Who may serve a licensed release: a node that has signed its acceptance, which is kept as evidence."""

from __future__ import annotations

import logging

from coordinator.state import StateStore
from mesh.clock import Clock
from mesh.errors import IntegrityError, LicenseRefused
from mesh.weights.trust.acceptance import open_acceptance
from mesh.weights.trust.manifest import Manifest

logger = logging.getLogger(__name__)


class LicenseDesk:
    def __init__(self, state: StateStore, clock: Clock) -> None:
        self._state, self._clock = state, clock

    async def admit(self, manifest: Manifest, node_id: str, record: bytes) -> None:
        """Returns once the node's acceptance is on record, where the licence needs one. Raises LicenseRefused.

        It is stored before any layer is reserved: no node ever serves without the evidence.
        """
        if not manifest.license.acceptance_required:
            return
        now = self._clock.wall()
        try:
            if not record:
                raise LicenseRefused(
                    f"release {manifest.name} is under {manifest.license.id} and this node has not accepted it; "
                    f"read it and join with --accept-license {manifest.license.id}"
                )
            acceptance = open_acceptance(record)
            acceptance.check_for(manifest, node_id)
        except (LicenseRefused, IntegrityError) as exc:
            logger.warning("licence acceptance refused", extra={"node_id": node_id, "reason": str(exc)})
            await self._state.note("license refused", node_id, str(exc), now)
            raise exc if isinstance(exc, LicenseRefused) else LicenseRefused(str(exc)) from exc
        await self._state.add_acceptance(acceptance, record, now)
