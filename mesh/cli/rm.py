"""``mesh rm RELEASE``: forget a release and give back the bytes that only it names."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mesh.cli.stores import JsonOption, StoreOption

SCHEMA = "mesh.rm/1"


def rm(
    release: Annotated[str, typer.Argument(help="A name that `mesh ls` shows, or the start of its id.")],
    store: StoreOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove a release from the store. Shards that another release names stay; one in use or pinned is refused."""
    import json

    from mesh.cli.stores import open_holdings, reclaim_as_json
    from mesh.errors import UsageError
    from mesh.sizes import format_size

    holdings = open_holdings(store)
    held = holdings.find(release)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"nobody is there to confirm that {held.name} may go; add --yes")
        typer.confirm(
            f"Remove {held.name} ({format_size(held.held_bytes)}, {held.release_id[:16]})?", abort=True
        )
    plan = holdings.remove(held)
    if as_json:
        typer.echo(json.dumps(reclaim_as_json(SCHEMA, plan)))
    else:
        typer.echo(f"removed {held.name}: {len(plan.roots)} shards, {format_size(plan.num_bytes)}")
