"""``mesh digest SOURCE``: the source digest that ``mesh pack`` records, from whoever's copy of the source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mesh.cli.pack import Kind

SCHEMA = "mesh.digest/1"


def digest(
    source: Annotated[Path, typer.Argument(help="What `mesh pack` was given.")],
    kind: Annotated[Kind, typer.Option("--as", help="As it was packed.")] = Kind.model,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Say the source digest of a checkpoint or directory; writes nothing. Compare it with what `mesh show` says."""
    import json

    from mesh.cli.progress import byte_progress
    from mesh.publishing import digest_of_source
    from mesh.weights.checkpoints.source_digest import METHOD

    with byte_progress("hashing") as progress:
        found = digest_of_source(source, kind.value, progress)
    if as_json:
        typer.echo(
            json.dumps(
                {"schema": SCHEMA, "source": source.absolute().name, "method": METHOD, "digest": found}
            )
        )
    else:
        typer.echo(f"{found}  {source.absolute().name}  {METHOD}")
