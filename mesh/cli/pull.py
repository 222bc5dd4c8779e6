"""``mesh pull RELEASE``: fetch a published release, or the shards of some layers, from peers and web seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mesh.cli.believing import CatalogOption
from mesh.cli.stores import StoreOption
from mesh.cli.swarm_options import (
    DhtBootstrap,
    Insecure,
    Lsd,
    MaxDownload,
    MaxUpload,
    ProfileOption,
    SwarmOptions,
    Upnp,
    WebSeedOption,
)
from mesh.swarm.addresses import Profile
from mesh.swarm.encoding_choice import Encoding


def pull(
    release: Annotated[
        str,
        typer.Argument(
            help="https://…/ of a web seed, a magnet link, HOST:PORT[/NAME] of a coordinator, DIR, or a catalog's NAME."
        ),
    ],
    layers: Annotated[
        str | None, typer.Option(help="Only what a stage of these layers needs, e.g. 0:16.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be fetched, fetch nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write a release directory there. Default: into the store.")
    ] = None,
    store: StoreOption = None,
    keep_seeding: Annotated[bool, typer.Option("--seed", help="Go on seeding until Ctrl-C.")] = False,
    trust: Annotated[
        Path | None,
        typer.Option(
            envvar="MESH_TRUST",
            help="The publisher's public key, or a catalog's root. Default: every key of yours, or the token's.",
        ),
    ] = None,
    catalog: CatalogOption = None,
    coordinator: Annotated[
        str | None,
        typer.Option(envvar="MESH_COORDINATOR", help="HOST:PORT of a coordinator that serves RELEASE."),
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="MESH_TOKEN", help="Join token of that coordinator.")
    ] = None,
    accept_license: Annotated[
        str | None,
        typer.Option(
            envvar="MESH_ACCEPT_LICENSE", help="Id of the licence, once you have read it; recorded."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="MESH_DATA", help="Data directory of the node under whose key licences are accepted."
        ),
    ] = None,
    encoding: Annotated[
        Encoding,
        typer.Option(
            envvar="MESH_ENCODING", help="Fetch shards as they are, encoded, or whichever is sooner there."
        ),
    ] = Encoding.AUTO,
    peer: Annotated[list[str] | None, typer.Option(help="HOST:PORT of a peer to ask. Repeatable.")] = None,
    web_seed: WebSeedOption = None,
    listen: Annotated[
        str | None,
        typer.Option(
            envvar="MESH_LISTEN", help="HOST:PORT for peers. Default: this machine, or all with --dht."
        ),
    ] = None,
    max_upload: MaxUpload = None,
    max_download: MaxDownload = None,
    profile: ProfileOption = Profile.AUTO,
    dht: Annotated[
        bool | None, typer.Option("--dht/--no-dht", help="Find peers in the DHT. Default: for magnet links.")
    ] = None,
    lsd: Lsd = False,
    upnp: Upnp = False,
    dht_bootstrap: DhtBootstrap = None,
    stall: Annotated[float, typer.Option(help="Give up after so many seconds without a byte.")] = 60.0,
    insecure: Insecure = False,
    json_events: Annotated[bool, typer.Option("--json", help="One JSON object per event on stdout.")] = False,
) -> int | None:
    """Fetch a release: signature, licence and torrent are checked first, every byte is hashed before it is kept."""
    from mesh.cli.pull_belief import Believing
    from mesh.cli.pull_terms import Word
    from mesh.cli.pulling import PullOptions, run_pull
    from mesh.errors import UsageError
    from mesh.layers import LayerRange
    from mesh.pulling.source import Coordinator, Link, read_source
    from mesh.swarm.addresses import web_seed_url
    from mesh.swarm.magnet import parse_peer
    from mesh.token import JoinToken
    from mesh.wire.channel import parse_endpoint, require_loopback

    source = read_source(release, coordinator, has_catalog=catalog is not None)
    if isinstance(source, Coordinator):
        host, _ = parse_endpoint(source.target, what="coordinator")
        require_loopback(host, what="coordinator", insecure=insecure)
        if token is None:
            raise UsageError("a coordinator needs --token; it printed one when it started")
    if out is not None and store is not None:
        raise UsageError("--out and --store: choose one")
    options = PullOptions(
        source=source,
        layers=LayerRange.parse(layers) if layers is not None else None,
        out=out,
        store=store,
        believing=Believing(trust, catalog, token),
        token=JoinToken.parse(token) if token is not None and isinstance(source, Coordinator) else None,
        word=Word(accept_license, data),
        encoding=encoding,
        peers=tuple(parse_peer(text) for text in peer or ()),
        web_seeds=tuple(web_seed_url(url) for url in web_seed or ()),
        swarm=SwarmOptions(
            listen,
            max_upload,
            max_download,
            profile,
            dht=isinstance(source, Link) if dht is None else dht,
            lsd=lsd,
            upnp=upnp,
            dht_bootstrap=tuple(dht_bootstrap or ()),
            insecure=insecure,
        ),
        dry_run=dry_run,
        keep_seeding=keep_seeding,
        stall_seconds=stall,
        json_events=json_events,
    )
    return run_pull(options)
