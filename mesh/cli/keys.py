"""``mesh keys``: the keys that sign releases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SCHEMA = "mesh.keys/1"

keys = typer.Typer(
    help="Make and list the keys that sign releases.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@keys.command()
def new(
    name: Annotated[str, typer.Argument(help="What to call the key.")] = "publisher",
    out: Annotated[
        Path | None, typer.Option(help="Where to write NAME.key and NAME.pub. Default: your key directory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Make a key pair. NAME.key stays with you; NAME.pub is what others trust."""
    from mesh.weights.trust.keyring import new_key
    from mesh.weights.trust.signing import PrivateKey

    private, public = new_key(name, out)
    key_id = PrivateKey.load(private).public.key_id
    if as_json:
        _say({"schema": SCHEMA, "key_id": key_id, "private": str(private), "public": str(public)})
    else:
        typer.echo(
            f"{key_id}\n  private  {private}   (keep it; whoever has it can sign as you)\n  public   {public}"
        )


@keys.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List the public keys in your key directory: those are trusted by default."""
    from mesh.dirs import keys_dir
    from mesh.weights.trust.keyring import public_keys

    found = [
        {"name": path.stem, "key_id": key_id, "can_sign": path.with_suffix(".key").is_file()}
        for path, root in public_keys()
        for key_id in root.keys
    ]
    if as_json:
        _say({"schema": SCHEMA, "directory": str(keys_dir()), "keys": found})
        return
    if not found:
        typer.echo(f"no keys in {keys_dir()}; make one with: mesh keys new", err=True)
    for key in found:
        typer.echo(f"{key['key_id']}  {'sign ' if key['can_sign'] else 'trust'}  {key['name']}")


def _say(value: object) -> None:
    import json

    typer.echo(json.dumps(value))
