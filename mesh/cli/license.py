"""``mesh license``: read the terms of a release, accept them for this machine's node, list what was accepted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mesh.cli.license_source import Terms

SCHEMA = "mesh.license/1"

license = typer.Typer(
    help="Read, accept and list the licences of releases.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Source = Annotated[Path | None, typer.Argument(help="A release on this machine.")]
Coordinator = Annotated[
    str | None,
    typer.Option(envvar="MESH_COORDINATOR", help="HOST:PORT: the terms of what is served there instead."),
]
Token = Annotated[str | None, typer.Option(envvar="MESH_TOKEN", help="Join token of that coordinator.")]
Trust = Annotated[
    Path | None,
    typer.Option(
        envvar="MESH_TRUST",
        help="The publisher's public key. Default: what the token names, or every key of yours.",
    ),
]
Which = Annotated[
    str | None, typer.Option("--release", help="Name or id, where a coordinator serves several.")
]
Data = Annotated[Path | None, typer.Option(envvar="MESH_DATA", help="The data directory of the node.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@license.command()
def show(
    path: Source = None,
    coordinator: Coordinator = None,
    token: Token = None,
    trust: Trust = None,
    release: Which = None,
    as_json: Json = False,
) -> None:
    """Print the licence, NOTICE and use policy of a release, as its publisher signed them."""
    from mesh.cli.license_source import find_terms

    found = find_terms(path, coordinator, token, trust, release)
    if as_json:
        _say({"schema": SCHEMA, **_facts(found)})
    else:
        _print_texts(found)
        word = (
            "has to be accepted" if found.manifest.license.acceptance_required else "nobody has to accept it"
        )
        typer.echo(f"{found.manifest.name} is under {found.manifest.license.id}; {word}", err=True)


@license.command()
def accept(
    path: Source = None,
    coordinator: Coordinator = None,
    token: Token = None,
    trust: Trust = None,
    release: Which = None,
    license_id: Annotated[
        str | None,
        typer.Option(
            "--accept-license",
            envvar="MESH_ACCEPT_LICENSE",
            help="Id of the licence, once you have read it. On a terminal you are asked.",
        ),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show the terms of a release and record, signed by this node, that you accept them: joining then asks no more."""
    import json
    import sys
    import time

    from mesh.cli.license_source import find_terms
    from mesh.errors import LicenseRefused
    from mesh.weights.trust import identity
    from mesh.weights.trust.acceptance import open_acceptance
    from mesh.weights.trust.acceptance_book import AcceptanceBook

    found = find_terms(path, coordinator, token, trust, release)
    wanted = found.manifest.license
    if not wanted.acceptance_required:
        typer.echo(f"{found.manifest.name} is under {wanted.id}, which nobody has to accept", err=True)
    _print_texts(found, err=True)
    if license_id is None and sys.stdin.isatty():
        license_id = typer.prompt(f"To accept these terms type {wanted.id}", err=True)
    if license_id != wanted.id:
        raise LicenseRefused(
            f"{found.manifest.name} is under {wanted.id}, shown above, and was not accepted: "
            f"read it, then say --accept-license {wanted.id}"
        )
    directory = _node_data(data)
    directory.mkdir(parents=True, exist_ok=True)
    record = AcceptanceBook(directory).record_for(
        found.manifest, identity.load_or_create(directory), time.time()
    )
    accepted = open_acceptance(record)
    if as_json:
        _say({"schema": SCHEMA, **_facts(found), "node_id": accepted.node_id, "record": json.loads(record)})
    else:
        typer.echo(f"accepted {wanted.id} of {found.manifest.name} as {accepted.node_id}")


@license.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List what this node has accepted. An operator lists all nodes' records with: mesh-coordinator licenses."""
    from mesh.weights.trust.acceptance_book import AcceptanceBook

    directory = _node_data(data)
    records = AcceptanceBook(directory).records()
    if as_json:
        rows = [
            {
                "license": record.license.id,
                "text_digest": record.license.text_digest,
                "release": record.release_name,
                "release_id": record.release_id,
                "node_id": record.node_id,
                "accepted": record.accepted,
            }
            for record in records
        ]
        _say({"schema": "mesh.licenses/1", "directory": str(directory), "accepted": rows})
        return
    if not records:
        typer.echo(f"the node in {directory} has accepted no licence", err=True)
    for record in records:
        typer.echo(
            f"{record.accepted}  {record.license.id}  {record.release_name} {record.release_id[:16]}"
            f"  text {record.license.text_digest[:16]}"
        )


def _print_texts(found: Terms, *, err: bool = False) -> None:
    for name, text in found.texts.named:
        typer.echo(f"---- {name} of {found.manifest.name}: {found.manifest.license.id} ----", err=err)
        typer.echo(text.decode("utf-8", errors="replace").rstrip("\n"), err=err)


def _facts(found: Terms) -> dict[str, Any]:
    manifest = found.manifest
    return {
        "release_id": manifest.release_id,
        "release": manifest.name,
        "license": manifest.license.id,
        "acceptance_required": manifest.license.acceptance_required,
        "texts": {name: text.decode("utf-8", errors="replace") for name, text in found.texts.named},
    }


def _node_data(data: Path | None) -> Path:
    from mesh.dirs import data_dir

    return data if data is not None else data_dir() / "node"


def _say(value: object) -> None:
    import json

    typer.echo(json.dumps(value))
