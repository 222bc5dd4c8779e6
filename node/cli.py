"""The ``mesh-node`` command. Parses, builds a NodeConfig, hands over; heavy imports wait until a command runs."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from mesh.cli.run_cli import new_app, run_app
from mesh.cli.swarm_options import MaxDownload, ProfileOption, parse_rate
from mesh.swarm.addresses import Profile
from mesh.swarm.encoding_choice import Encoding

app = new_app("mesh-node", "Lend this machine's memory to a mesh: host a range of a model's layers.")


@app.command()
def join(
    coordinator: Annotated[str, typer.Argument(help="HOST:PORT of the coordinator, from the join line.")],
    token: Annotated[str, typer.Option(envvar="MESH_TOKEN", help="The join token: mesh1_…")],
    memory: Annotated[
        str | None,
        typer.Option(
            envvar="MESH_MEMORY", help="What this process may take, e.g. 8GiB. Default: 80% of what is free."
        ),
    ] = None,
    device: Annotated[str, typer.Option(envvar="MESH_DEVICE", help="auto, cpu or cuda:N.")] = "auto",
    engine: Annotated[
        str,
        typer.Option(
            envvar="MESH_ENGINE",
            help="torch (exact float32), native (CPU, several times faster on quantised weights, rounds activations"
            " to 8 bits) or auto (native where it can be).",
        ),
    ] = "torch",
    layers: Annotated[
        str | None, typer.Option(envvar="MESH_LAYERS", help="Insist on a layer range, e.g. 10:20.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            envvar="MESH_MODEL", help="Insist on a model. Default: the one that needs this node most."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(envvar="MESH_NAME", help="What people call this node. Default: the host's name."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(envvar="MESH_DATA", help="Where identity and shards are kept; one node per directory."),
    ] = None,
    listen: Annotated[
        str,
        typer.Option(envvar="MESH_LISTEN", help="Where neighbours reach the stage; port 0 is any free one."),
    ] = "127.0.0.1:0",
    swarm_listen: Annotated[
        str, typer.Option(envvar="MESH_SWARM_LISTEN", help="Where BitTorrent peers reach this node.")
    ] = "127.0.0.1:0",
    threads: Annotated[
        int | None,
        typer.Option(envvar="MESH_THREADS", help="CPU threads to compute with. Default: all cores."),
    ] = None,
    kv_tokens: Annotated[
        int, typer.Option(envvar="MESH_KV_TOKENS", help="Tokens of KV cache to reserve, over all sessions.")
    ] = 8192,
    max_sessions: Annotated[
        int, typer.Option(envvar="MESH_MAX_SESSIONS", help="Sequences served at the same time.")
    ] = 64,
    max_upload: Annotated[
        str | None,
        typer.Option(
            envvar="MESH_MAX_UPLOAD", help="Seed at most this much per second, e.g. 2MB. Default: no limit."
        ),
    ] = None,
    max_download: MaxDownload = None,
    profile: ProfileOption = Profile.AUTO,
    encoding: Annotated[
        Encoding,
        typer.Option(
            envvar="MESH_ENCODING", help="Fetch shards as they are, encoded, or whichever is sooner there."
        ),
    ] = Encoding.AUTO,
    store_quota: Annotated[
        str | None,
        typer.Option(
            envvar="MESH_STORE_QUOTA",
            help="Shards on disk may take this much, e.g. 100GB. Default: what `mesh gc --quota` set, else no bound.",
        ),
    ] = None,
    accept_license: Annotated[
        str | None,
        typer.Option(
            envvar="MESH_ACCEPT_LICENSE",
            help="Id of the model's licence, once you have read it; recorded under this node's key.",
        ),
    ] = None,
    trust: Annotated[
        Path | None,
        typer.Option(envvar="MESH_TRUST", help="Publisher keys to believe instead of those the token names."),
    ] = None,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for a coordinator that is not there yet.")
    ] = 10.0,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Take the plan without asking. Never accepts a licence.")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow addresses beyond this machine, unencrypted.")
    ] = False,
    json_events: Annotated[bool, typer.Option("--json", help="One JSON object per event on stdout.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what happens, and tracebacks.")
    ] = False,
) -> int | None:
    """Join a mesh: see the plan, fetch and verify the shards of some layers, serve them until Ctrl-C."""
    from mesh.dirs import data_dir
    from mesh.layers import LayerRange
    from mesh.log import configure
    from mesh.sizes import parse_size
    from mesh.token import JoinToken
    from mesh.wire.channel import format_endpoint, parse_endpoint
    from node.config import NodeConfig

    configure(verbose=verbose)
    config = NodeConfig(
        coordinator=format_endpoint(*parse_endpoint(coordinator, what="coordinator")),
        token=JoinToken.parse(token),
        name=name if name is not None else socket.gethostname(),
        data=data if data is not None else data_dir() / "node",
        trust_file=trust,
        memory_bytes=parse_size(memory) if memory is not None else None,
        device=device,
        engine=engine,
        threads=threads,
        layers=LayerRange.parse(layers) if layers is not None else None,
        model=model,
        listen=parse_endpoint(listen, what="--listen"),
        swarm_listen=parse_endpoint(swarm_listen, what="--swarm-listen"),
        kv_tokens=kv_tokens,
        max_sessions=max_sessions,
        max_upload_bytes_per_second=parse_rate(max_upload),
        max_download_bytes_per_second=parse_rate(max_download),
        profile=profile,
        store_quota_bytes=parse_size(store_quota) if store_quota is not None else None,
        accept_license=accept_license,
        assume_yes=yes,
        insecure=insecure,
        wait_seconds=wait,
        json_events=json_events,
        encoding=encoding,
    )
    from node.daemon import run

    return run(config)


def main(argv: list[str] | None = None) -> int:
    return run_app(app, argv, prog="mesh-node")
