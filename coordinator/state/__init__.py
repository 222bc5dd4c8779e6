"""What the coordinator remembers over a restart: join tokens, API keys, releases, nodes, the audit trail. The one door to SQLAlchemy.

Leases, routes and sessions are not here: they live as long as the process. ``open_state`` is the door.
"""

from coordinator.state.release_store import ReleaseRecord
from coordinator.state.store import NodeRecord, StateStore, open_state

__all__ = ["NodeRecord", "ReleaseRecord", "StateStore", "open_state"]
