"""What happened to nodes, told twice: a line in the log for now, a row in the audit trail for later."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from coordinator.membership import Change, ChangeKind
from coordinator.state import StateStore
from mesh.clock import Clock
from mesh.errors import MeshError

logger = logging.getLogger(__name__)


class Journal:
    def __init__(self, state: StateStore, clock: Clock) -> None:
        self._state, self._clock = state, clock

    async def write(self, changes: Iterable[Change]) -> None:
        """Never raises a MeshError: a full disk is loud, and no reason to end the mesh."""
        for change in changes:
            node = change.node
            logger.log(
                logging.WARNING if change.kind is ChangeKind.LOST else logging.INFO,
                "node %s",
                change.kind,
                extra={"node": node.name, "layers": str(node.layers), "node_id": node.node_id},
            )
            try:
                await self._state.record_node(
                    change.kind, node.node_id, node.name, node.layers, self._clock.wall()
                )
            except MeshError as exc:
                logger.error("the audit trail has a hole", extra={"event": change.kind, "reason": str(exc)})
