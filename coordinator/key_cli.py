"""``mesh-coordinator key``: let clients in, within limits, or no longer. Works beside a running coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli_options import Data, Json, data_directory, seconds_of, when

if TYPE_CHECKING:
    from coordinator.access.api_keys import KeyRecord

key = typer.Typer(help="Let clients ask, or no longer.", no_args_is_help=True, rich_markup_mode=None)


@key.command()
def create(
    label: Annotated[str, typer.Option(help="Whom it is for; shown by `key list`.")] = "",
    ttl: Annotated[
        str | None,
        typer.Option(help="How long it is good for, e.g. 24h or 30d. Default: until it is revoked."),
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="generate or inspect; may be given twice. Default: both.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model it may use; may be given again. Default: every one.")
    ] = None,
    rpm: Annotated[int | None, typer.Option(min=1, help="Requests per minute.")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, help="Tokens per minute, prompts and answers.")] = None,
    streams: Annotated[int | None, typer.Option(min=1, help="Requests answered at the same time.")] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of KV cache held at the same time.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make an API key and print it. It cannot be shown again. From the first key on, every client needs one."""
    import asyncio
    import json

    from coordinator.access.api_keys import Limits, Scope, create_key
    from coordinator.state import open_state
    from mesh.clock import SystemClock
    from mesh.errors import UsageError

    unknown = [name for name in scope or () if name not in list(Scope)]
    if unknown:
        raise UsageError(f"--scope {unknown[0][:40]!r}: expected {' or '.join(Scope)}")
    directory, now = data_directory(data), SystemClock().wall()
    expires = None if ttl is None else now + seconds_of(ttl)
    limits = Limits(rpm, tpm, streams, kv_tokens)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def make() -> tuple[str, KeyRecord]:
        async with open_state(directory) as state:
            return await create_key(
                state,
                label,
                now,
                expires=expires,
                scopes=map(Scope, scope) if scope else Scope,
                models=model or (),
                limits=limits,
            )

    secret, record = asyncio.run(make())
    if as_json:
        typer.echo(
            json.dumps(
                {"schema": "mesh.key/1", "key": secret, "id": record.key_id, "expires": record.expires}
            )
        )
    else:
        typer.echo(secret)


@key.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List API keys: what they are called, what they allow and whether they are valid; never the keys themselves."""
    import asyncio
    import json
    from dataclasses import asdict

    from mesh.clock import SystemClock

    directory, now = _existing(data), SystemClock().wall()
    found = asyncio.run(_read(directory))
    if as_json:
        rows = [
            {
                "id": record.key_id,
                "status": record.status(now),
                "label": record.label,
                "created": record.created,
                "expires": record.expires,
                "scopes": sorted(record.scopes),
                "models": sorted(record.models),
                "limits": asdict(record.limits),
            }
            for record in found
        ]
        typer.echo(json.dumps({"schema": "mesh.keys/1", "keys": rows}))
        return
    if not found:
        typer.echo("no API keys: whoever reaches the API may ask", err=True)
    for record in found:
        expires = "never expires" if record.expires is None else f"expires {when(record.expires)}"
        typer.echo(
            f"{record.key_id}  {record.status(now):<8}  {expires}  {_allows(record)}  {record.label}".rstrip()
        )


@key.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id from `key list`, or its beginning.")], data: Data = None
) -> None:
    """Refuse a key from the next second on; answers that are running end by themselves."""
    import asyncio

    from coordinator.state import open_state
    from mesh.clock import SystemClock

    directory = _existing(data)

    async def write() -> KeyRecord:
        async with open_state(directory) as state:
            return await state.revoke_key(key_id, SystemClock().wall())

    typer.echo(f"revoked {asyncio.run(write()).key_id}", err=True)


def has_keys(directory: Path) -> bool:
    """Whether clients will be asked for one: revoked and expired ones count, they do not open the door again."""
    import asyncio

    return directory.is_dir() and bool(asyncio.run(_read(directory)))


def _existing(data: Path | None) -> Path:
    """A question must not make a data directory."""
    from mesh.errors import NotFound

    directory = data_directory(data)
    if not directory.is_dir():
        raise NotFound(f"no coordinator has run with --data {directory}, and no key was made there")
    return directory


async def _read(directory: Path) -> list[KeyRecord]:
    from coordinator.state import open_state

    async with open_state(directory) as state:
        return await state.keys()


def _allows(record: KeyRecord) -> str:
    limits = record.limits
    parts = [
        " ".join(sorted(record.scopes)),
        *([f"models {', '.join(sorted(record.models))}"] if record.models else []),
        *(
            f"{value} {name.replace('_', ' ')}"
            for name in limits.__slots__
            if (value := getattr(limits, name)) is not None
        ),
    ]
    return ", ".join(parts)
