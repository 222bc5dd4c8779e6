"""The ``mesh-coordinator`` command. Parses, builds a config, hands over; heavy imports wait until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli_options import Data, Json, data_directory, existing_directory, seconds_of, when
from coordinator.key_cli import has_keys, key
from coordinator.membership import LEASE_SECONDS
from coordinator.release_cli import release
from mesh.cli.run_cli import new_app, run_app

if TYPE_CHECKING:
    from coordinator.data_directory import Listening
    from mesh.token import JoinToken

app = new_app("mesh-coordinator", "Bring nodes together: offer layers, find routes, answer clients.")
token = typer.Typer(help="Let nodes in, or no longer.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(token, name="token")
app.add_typer(key, name="key")
app.add_typer(release, name="release")


@app.command()
def up(
    release: Annotated[
        list[Path],
        typer.Option(
            envvar="MESH_RELEASE", help="A release to serve, as `mesh pack` wrote it; may be given again."
        ),
    ],
    trust: Annotated[
        Path | None,
        typer.Option(envvar="MESH_TRUST", help="Publisher's public key. Default: every key you keep."),
    ] = None,
    catalog: Annotated[
        Path | None,
        typer.Option(
            envvar="MESH_CATALOG",
            help="Catalog that lists the release; join tokens then pin its root instead of keys.",
        ),
    ] = None,
    online_key: Annotated[
        list[str] | None,
        typer.Option(help="Key that signs the catalog's snapshot and timestamp. Default: one you keep."),
    ] = None,
    listen: Annotated[
        str,
        typer.Option(
            envvar="MESH_COORDINATOR_LISTEN",
            help="HOST:PORT of the OpenAI-compatible API; port 0 is any free one.",
        ),
    ] = "127.0.0.1:8080",
    grpc: Annotated[
        str, typer.Option(envvar="MESH_COORDINATOR_GRPC", help="HOST:PORT for nodes and seeders.")
    ] = "127.0.0.1:7443",
    advertise: Annotated[
        str | None,
        typer.Option(
            envvar="MESH_COORDINATOR_ADVERTISE",
            help="Host that nodes shall dial, where --grpc is on every address.",
        ),
    ] = None,
    data: Data = None,
    lease: Annotated[
        float,
        typer.Option(
            envvar="MESH_COORDINATOR_LEASE", help="Seconds after which a silent node counts as lost."
        ),
    ] = LEASE_SECONDS,
    max_session_tokens: Annotated[
        int | None,
        typer.Option(
            envvar="MESH_MAX_SESSION_TOKENS",
            help="Most tokens that prompt and answer of one session may hold. Default: the model's context.",
        ),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Make no join token; those made before stay valid.")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow addresses beyond this machine, unencrypted.")
    ] = False,
    json_events: Json = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more, and tracebacks.")] = False,
) -> int | None:
    """Serve a release: verify it, then wait for nodes and answer clients until Ctrl-C."""
    import logging

    from coordinator.config import CoordinatorConfig
    from mesh.log import configure
    from mesh.wire.channel import parse_endpoint

    configure(verbose=verbose, level=logging.INFO)
    config = CoordinatorConfig(
        releases=tuple(release),
        trust_file=trust,
        catalog=catalog,
        online_keys=tuple(online_key or ()),
        http=_numeric(parse_endpoint(listen, what="--listen")),
        grpc=_numeric(parse_endpoint(grpc, what="--grpc")),
        advertise=advertise,
        data=data_directory(data),
        lease_seconds=lease,
        max_session_tokens=max_session_tokens,
        make_token=not no_token,
        insecure=insecure,
        has_api_keys=has_keys(data_directory(data)),
    )
    if insecure:
        typer.echo(
            "WARNING: --insecure: whoever can reach these addresses can use the mesh, and read and change what it says",
            err=True,
        )
    from coordinator.daemon import run

    return run(config, _print_events if json_events else _print_listening)


@token.command()
def create(
    label: Annotated[str, typer.Option(help="Whom it is for; shown by `token list`.")] = "",
    ttl: Annotated[
        str | None,
        typer.Option(help="How long it lets nodes in, e.g. 24h or 30d. Default: until it is revoked."),
    ] = None,
    tracker: Annotated[
        bool,
        typer.Option(
            "--tracker", help="Make an announce URL for BitTorrent clients instead; nobody can join with it."
        ),
    ] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make a join token and print the line that a volunteer pastes. It cannot be shown again."""
    import asyncio
    import json

    from coordinator.data_directory import read_listening
    from coordinator.join_tokens import create_passkey, create_token
    from coordinator.state import open_state
    from mesh.clock import SystemClock

    directory, now = data_directory(data), SystemClock().wall()
    listening = read_listening(directory)
    expires = None if ttl is None else now + seconds_of(ttl)

    async def make() -> JoinToken:
        async with open_state(directory) as state:
            return await create_token(state, bytes.fromhex(listening.trust_digest), label, now, expires)

    async def make_passkey() -> str:
        async with open_state(directory) as state:
            return await create_passkey(state, label, now, expires)

    if tracker:
        announce = f"http://{listening.http}/announce/{asyncio.run(make_passkey())}"
        value = {"schema": "mesh.tracker/1", "announce": announce, "expires": expires}
        typer.echo(json.dumps(value) if as_json else announce)
        return
    made = asyncio.run(make())
    if as_json:
        value = {
            "schema": "mesh.token/1",
            "token": made.encode(),
            "join": listening.join_line(made),
            "expires": expires,
        }
        typer.echo(json.dumps(value))
    else:
        typer.echo(listening.join_line(made))


@token.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List join tokens: what they are called and whether they are valid; never their secrets."""
    import asyncio
    import json

    from coordinator.join_tokens import TokenRecord
    from coordinator.state import open_state
    from mesh.clock import SystemClock

    directory, now = existing_directory(data), SystemClock().wall()

    async def read() -> list[TokenRecord]:
        async with open_state(directory) as state:
            return await state.tokens()

    found = asyncio.run(read())
    if as_json:
        rows = [
            {
                "id": record.token_id,
                "status": record.status(now),
                "label": record.label,
                "created": record.created,
                "expires": record.expires,
            }
            for record in found
        ]
        typer.echo(json.dumps({"schema": "mesh.tokens/1", "tokens": rows}))
        return
    for record in found:
        expires = "never expires" if record.expires is None else f"expires {when(record.expires)}"
        line = f"{record.token_id}  {record.status(now):<8}  created {when(record.created)}, {expires}  {record.label}"
        typer.echo(line.rstrip())


@token.command()
def revoke(
    token_id: Annotated[str, typer.Argument(help="Id from `token list`, or its beginning.")],
    data: Data = None,
) -> None:
    """Let nobody in with a token any more. Nodes that have joined stay while they renew their leases."""
    import asyncio

    from coordinator.join_tokens import TokenRecord
    from coordinator.state import open_state
    from mesh.clock import SystemClock

    directory = existing_directory(data)

    async def write() -> TokenRecord:
        async with open_state(directory) as state:
            return await state.revoke_token(token_id, SystemClock().wall())

    typer.echo(f"revoked {asyncio.run(write()).token_id}", err=True)


@app.command()
def nodes(data: Data = None, as_json: Json = False) -> None:
    """List the nodes that were ever here and what became of each; read from the data directory, so it works while
    no coordinator runs, too."""
    import asyncio
    import json

    from coordinator.state import NodeRecord, open_state

    directory = existing_directory(data)

    async def read() -> list[NodeRecord]:
        async with open_state(directory) as state:
            return await state.nodes()

    found = asyncio.run(read())
    if as_json:
        rows = [
            {
                "node_id": node.node_id,
                "name": node.name,
                "state": node.state,
                "layers": str(node.layers),
                "first_seen": node.first_seen,
                "last_seen": node.last_seen,
            }
            for node in found
        ]
        typer.echo(json.dumps({"schema": "mesh.nodes/1", "nodes": rows}))
        return
    for node in found:
        typer.echo(
            f"{node.name:<16}  {node.state:<8}  layers {node.layers!s:<9}  "
            f"last seen {when(node.last_seen)}  {node.node_id}"
        )


@app.command()
def licenses(data: Data = None, as_json: Json = False) -> None:
    """List which node has accepted which licence; --json holds the signed records, to hand to a licensor."""
    import asyncio
    import json

    from coordinator.state import open_state
    from coordinator.state.acceptance_store import StoredAcceptance

    directory = existing_directory(data)

    async def read() -> list[StoredAcceptance]:
        async with open_state(directory) as state:
            return await state.acceptances()

    found = asyncio.run(read())
    if as_json:
        rows = [
            {
                "node_id": stored.acceptance.node_id,
                "license": stored.acceptance.license.id,
                "release": stored.acceptance.release_name,
                "release_id": stored.acceptance.release_id,
                "accepted": stored.acceptance.accepted,
                "received": stored.received,
                "record": json.loads(stored.record),
            }
            for stored in found
        ]
        typer.echo(json.dumps({"schema": "mesh.acceptances/1", "acceptances": rows}))
        return
    for stored in found:
        acceptance = stored.acceptance
        typer.echo(
            f"{acceptance.accepted}  {acceptance.license.id}  {acceptance.release_name} "
            f"{acceptance.release_id[:16]}  {acceptance.node_id}"
        )


def _print_listening(listening: Listening, token: JoinToken | None) -> None:
    lines = [
        f"serving {listening.model}, release {listening.release[:16]}",
        f"  clients  http://{listening.http}/v1",
    ]
    if token is None:
        lines.append(f"  nodes    {listening.grpc} (mesh-coordinator token create prints a join line)")
    else:
        lines += [
            f"  nodes    {listening.join_line(token)}",
            f"  seeders  mesh seed DIR --coordinator {listening.grpc} --token {token.encode()}",
        ]
    typer.echo("\n".join(lines))


def _print_events(listening: Listening, token: JoinToken | None) -> None:
    import json

    event = {
        "event": "listening",
        "http": listening.http,
        "grpc": listening.grpc,
        "token": token.encode() if token is not None else None,
        "release": listening.release,
        "model": listening.model,
    }
    typer.echo(json.dumps(event))


def _numeric(endpoint: tuple[str, int]) -> tuple[str, int]:
    """``localhost`` may be two addresses, and port 0 must be one port."""
    return ("127.0.0.1" if endpoint[0] == "localhost" else endpoint[0], endpoint[1])


def main(argv: list[str] | None = None) -> int | None:
    return run_app(app, argv, prog="mesh-coordinator")
