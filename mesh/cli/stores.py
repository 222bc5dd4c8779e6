"""The store a command works on, and how what leaves it is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mesh.weights.releases.holdings import Holdings
    from mesh.weights.releases.reclaiming import Reclaim

StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        envvar="MESH_STORE",
        help="The store, or a node's --data directory. Default: yours, where `mesh pull` puts releases.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def open_holdings(directory: Path | None) -> Holdings:
    """The user's store, or another; ``MESH_STORE_QUOTA`` overrules the quota it remembers."""
    from mesh.dirs import store_dir
    from mesh.errors import NotFound
    from mesh.sizes import parse_size
    from mesh.weights.releases.holdings import Holdings
    from mesh.weights.releases.store import ShardStore

    if directory is not None and not directory.is_dir():
        raise NotFound(f"store {directory}: no such directory")
    if (
        directory is not None
        and not (directory / "blobs").is_dir()
        and (directory / "shards" / "blobs").is_dir()
    ):
        directory = directory / "shards"  # of a node
    quota = os.environ.get("MESH_STORE_QUOTA")
    store = ShardStore(directory if directory is not None else store_dir())
    return Holdings(store, quota_bytes=parse_size(quota) if quota else None)


def reclaim_as_json(schema: str, plan: Reclaim, **more: Any) -> dict[str, Any]:
    return {
        "schema": schema,
        "releases": list(plan.releases),
        "shards": len(plan.roots),
        "downloads": list(plan.downloads),
        "bytes": plan.num_bytes,
        **more,
    }
