"""``mesh-coordinator release``: serve another model or a new version, or no longer, without a restart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli_options import Data, Json, existing_directory, when

if TYPE_CHECKING:
    from coordinator.state import ReleaseRecord

release = typer.Typer(
    help="Serve another model, or a new version of one.", no_args_is_help=True, rich_markup_mode=None
)


@release.command()
def add(
    directory: Annotated[Path, typer.Argument(help="The release, as `mesh pack` wrote it.")],
    now: Annotated[
        bool,
        typer.Option(
            "--now",
            help="Older versions of this model take no new request from now on, although this one is not ready yet.",
        ),
    ] = False,
    trust: Annotated[
        Path | None,
        typer.Option(envvar="MESH_TRUST", help="Publisher's public key. Default: every key you keep."),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Verify a release and serve it beside the others; a running coordinator takes it up within seconds.

    A release with the name of one that is served is its new version: it answers as soon as all of its layers are there,
    what is being answered ends on the old one, and nodes move over when nothing runs on them.
    """
    import asyncio
    import json

    from coordinator.state import ReleaseRecord, open_state
    from coordinator.verified_release import verify
    from mesh.clock import SystemClock
    from mesh.weights.trust.keyring import trusted_keys

    manifest = verify(directory, trusted_keys(trust)).release.manifest
    record = ReleaseRecord(
        manifest.release_id, manifest.name, str(directory.absolute()), now, SystemClock().wall()
    )
    where = existing_directory(data)

    async def write() -> None:
        async with open_state(where) as state:
            await state.add_release(record)

    asyncio.run(write())
    if as_json:
        typer.echo(
            json.dumps({"schema": "mesh.release/1", "release": record.release_id, "model": record.name})
        )
    else:
        typer.echo(f"added {record.name}, release {record.release_id[:16]}", err=True)


@release.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List the releases that were added; those of `up --release` are not among them."""
    import asyncio
    import json
    from dataclasses import asdict

    from coordinator.state import open_state

    where = existing_directory(data)

    async def read() -> list[ReleaseRecord]:
        async with open_state(where) as state:
            return await state.releases()

    found = asyncio.run(read())
    if as_json:
        typer.echo(json.dumps({"schema": "mesh.releases/1", "releases": [asdict(each) for each in found]}))
        return
    for each in found:
        state = "served" if each.removed is None else f"removed {when(each.removed)}"
        typer.echo(
            f"{each.release_id[:16]}  {each.name}  {state}  added {when(each.added)}  {each.directory}"
        )


@release.command()
def remove(
    release_id: Annotated[str, typer.Argument(help="Id from `release list`, or its beginning.")],
    data: Data = None,
) -> None:
    """Serve a release no longer. Its answers end with an error, its nodes join again for what is left."""
    import asyncio

    from coordinator.state import open_state
    from mesh.clock import SystemClock

    where = existing_directory(data)

    async def write() -> ReleaseRecord:
        async with open_state(where) as state:
            return await state.remove_release(release_id, SystemClock().wall())

    gone = asyncio.run(write())
    typer.echo(f"removed {gone.name}, release {gone.release_id[:16]}", err=True)
