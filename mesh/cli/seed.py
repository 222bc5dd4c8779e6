"""``mesh seed DIR``: offer a packed release to the swarm until a signal ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mesh.cli.believing import CatalogOption, believed_keys


def seed(
    directory: Annotated[Path, typer.Argument(help="The release that `mesh pack` wrote.")],
    trust: Annotated[
        Path | None,
        typer.Option(
            envvar="MESH_TRUST",
            help="Trust file with the publisher's key. Default: all public keys you keep.",
        ),
    ] = None,
    catalog: CatalogOption = None,
    listen: Annotated[
        str,
        typer.Option(envvar="MESH_LISTEN", help="HOST:PORT for BitTorrent peers; port 0 picks a free one."),
    ] = "127.0.0.1:0",
    max_upload: Annotated[
        str | None, typer.Option(envvar="MESH_MAX_UPLOAD", help="Upload at most this much, e.g. 2MB/s.")
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option(envvar="MESH_COORDINATOR", help="HOST:PORT of a coordinator to announce to.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="MESH_TOKEN", help="Join token of that coordinator.")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Allow addresses that strangers can reach; nothing is encrypted."),
    ] = False,
    json_events: Annotated[bool, typer.Option("--json", help="One JSON object per event on stdout.")] = False,
) -> int | None:
    """Check a release's signature and every byte of it, then upload it to whoever asks."""
    from mesh.cli.seeding import Announcing, run_seeder
    from mesh.errors import UsageError
    from mesh.sizes import parse_size
    from mesh.swarm.settings import SwarmSettings
    from mesh.token import JoinToken
    from mesh.weights.release import Release
    from mesh.wire.channel import format_endpoint, is_loopback, parse_endpoint, require_loopback

    host, port = parse_endpoint(listen, what="--listen")
    require_loopback(host, what="--listen", insecure=insecure)
    if not is_loopback(host):
        typer.echo(
            f"WARNING: --insecure: whoever can reach {host} can download this release, and see who does",
            err=True,
        )
    announcing = None
    if coordinator is not None:
        if token is None:
            raise UsageError("--coordinator needs --token; the coordinator printed it when it started")
        target = format_endpoint(*parse_endpoint(coordinator, what="--coordinator"))
        announcing = Announcing(target, JoinToken.parse(token))
    settings = SwarmSettings(
        listen_host="127.0.0.1" if host == "localhost" else host,
        port=port,
        max_upload_bytes_per_second=None if max_upload is None else parse_size(max_upload.removesuffix("/s")),
    )
    release = Release.open(directory, believed_keys(directory, trust, catalog))
    return run_seeder(release, settings, announcing, json_events=json_events)
