"""``mesh seed DIR``: offer a packed release to the swarm until a signal ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mesh.cli.believing import CatalogOption, believed_keys, believer
from mesh.cli.swarm_options import (
    DhtBootstrap,
    Lsd,
    MaxDownload,
    MaxUpload,
    ProfileOption,
    SwarmOptions,
    Upnp,
    WebSeedOption,
)
from mesh.swarm.addresses import Profile


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
        str | None,
        typer.Option(
            envvar="MESH_LISTEN",
            help="HOST:PORT for BitTorrent peers. Default: this machine, or everywhere with --dht, --lsd or --upnp.",
        ),
    ] = None,
    max_upload: MaxUpload = None,
    max_download: MaxDownload = None,
    profile: ProfileOption = Profile.AUTO,
    dht: Annotated[bool, typer.Option("--dht", help="Be found in the DHT. Open releases only.")] = False,
    lsd: Lsd = False,
    upnp: Upnp = False,
    dht_bootstrap: DhtBootstrap = None,
    web_seed: WebSeedOption = None,
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
    from mesh.swarm.addresses import web_seed_url
    from mesh.token import JoinToken
    from mesh.weights.releases.release import Release
    from mesh.wire.channel import format_endpoint, is_loopback, parse_endpoint

    release = Release.open(directory, believed_keys(directory, trust, catalog))

    def check_revoked() -> None:
        """Asks the catalog as it is then. Raises ReleaseRevoked, RevocationsStale, NotFound and kin."""
        check = believer(trust, catalog)(release.envelope).revocation
        if check is not None:
            check(release.manifest, release.manifest.shards)

    check_revoked()
    options = SwarmOptions(
        listen, max_upload, max_download, profile, dht, lsd, upnp, tuple(dht_bootstrap or ()), insecure
    )
    settings = options.settings(is_open=not release.manifest.torrent.private)
    if release.manifest.torrent.private and not is_loopback(settings.listen_host):
        typer.echo(
            f"WARNING: --insecure: whoever can reach {settings.listen_host} can download this release,"
            " and see who does",
            err=True,
        )
    announcing = None
    if coordinator is not None:
        if token is None:
            raise UsageError("--coordinator needs --token; the coordinator printed it when it started")
        target = format_endpoint(*parse_endpoint(coordinator, what="--coordinator"))
        announcing = Announcing(target, JoinToken.parse(token))
    urls = tuple(web_seed_url(url) for url in web_seed or ())
    return run_seeder(
        release,
        settings,
        announcing,
        urls,
        check_revoked=check_revoked if catalog is not None else None,
        json_events=json_events,
    )
