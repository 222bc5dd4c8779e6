"""``mesh unpin RELEASE``."""

from __future__ import annotations

from typing import Annotated

import typer

from mesh.cli.stores import JsonOption, StoreOption

SCHEMA = "mesh.unpin/1"


def unpin(
    release: Annotated[str, typer.Argument(help="A name that `mesh ls` shows, or the start of its id.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let `mesh gc` remove a release again when the quota asks for it."""
    import json

    from mesh.cli.stores import open_holdings

    holdings = open_holdings(store)
    held = holdings.find(release)
    holdings.unpin(held)
    if as_json:
        typer.echo(json.dumps({"schema": SCHEMA, "release_id": held.release_id, "name": held.name}))
    else:
        typer.echo(f"unpinned {held.name}")
