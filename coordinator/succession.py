"""When a node leaves an old version of a model for the new one: a pure choice that opens no hole.

A node moves when nothing runs on it and either the new version can already answer or the old one can without this node.
Where the nodes are just enough for one version, no order of moves keeps both whole; then the operator says ``at_once`` and
accepts that requests are refused, with ``Retry-After``, until the new version is complete.
"""

from __future__ import annotations

from coordinator.topology import MeshView


def may_move(old: MeshView, node_id: str, new: MeshView, *, answers: int, at_once: bool) -> bool:
    """``answers`` are those that run on the node."""
    if answers:
        return False
    if at_once or new.route() is not None:
        return True
    others = MeshView(tuple(node for node in old.nodes if node.node_id != node_id), old.num_layers)
    return others.route() is not None
