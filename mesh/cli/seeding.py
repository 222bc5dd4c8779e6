"""The seeder as a process: check, seed, announce, report, until a signal comes."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from mesh.cli.announcing import address_towards, announcement, keep_announced
from mesh.cli.transfers import TransferView
from mesh.errors import Unreachable
from mesh.sizes import format_size
from mesh.stopping import run_until_signal
from mesh.swarm.companion import Companion, magnet_of_release, seed_companion
from mesh.swarm.fetching import seed
from mesh.swarm.session import SwarmSession, SwarmSettings
from mesh.swarm.torrent import Peer, SwarmTorrent
from mesh.swarm.twins import seed_twins
from mesh.token import JoinToken
from mesh.weights.releases.release import Release
from mesh.weights.trust.revocation import RevocationsStale
from mesh.wire.channel import format_endpoint, is_loopback

REPORT_SECONDS = 10.0
VIEW_SECONDS = 0.5
RECHECK_SECONDS = 15.0  # of the catalog, for revocations
GRACE_SECONDS = 24 * 3600.0  # a web server may be away for a night

CheckRevoked = Callable[[], None]  # raises if the release was taken back


@dataclass(frozen=True, slots=True)
class Announcing:
    """Which coordinator to tell, and what admits us there."""

    target: str  # HOST:PORT
    token: JoinToken


def run_seeder(
    release: Release,
    settings: SwarmSettings,
    announcing: Announcing | None,
    web_seeds: Sequence[str] = (),
    *,
    check_revoked: CheckRevoked | None = None,
    json_events: bool,
) -> int | None:
    """Returns 128 plus the number of the signal that ended it. Raises MeshError."""
    return run_until_signal(_seed(release, settings, announcing, web_seeds, check_revoked, json_events))


async def _seed(
    release: Release,
    settings: SwarmSettings,
    announcing: Announcing | None,
    web_seeds: Sequence[str],
    check_revoked: CheckRevoked | None,
    json_events: bool,
) -> None:
    manifest = release.manifest
    with tempfile.TemporaryDirectory(prefix="mesh-seed-") as scratch, TransferView(manifest.name) as view:
        async with SwarmSession(settings) as session:
            torrent = await seed(session, release.torrent, manifest, release.directory)
            twins = await seed_twins(session, release)
            if not manifest.torrent.private:
                # Whoever has only the magnet link gets the signed manifest from us, too.
                await seed_companion(
                    session,
                    Companion.of(release.envelope, release.torrent, release.twin_torrent),
                    Path(scratch),
                )
            _say_seeding(release, session.endpoint, web_seeds, json_events)
            duties = [report_uploads([torrent, *([twins] if twins else [])], view, manifest.total_bytes)]
            if announcing is not None:
                duties.append(_announce(release, session, announcing))
            if check_revoked is not None:
                duties.append(watch_revocations(check_revoked))
            await do_all(duties)


async def do_all(duties: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Each lasts until it is cancelled; one that fails ends the others."""
    tasks = [asyncio.create_task(duty) for duty in duties]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _announce(release: Release, session: SwarmSession, announcing: Announcing) -> None:
    host, port = session.endpoint
    if session.settings.is_wildcard:
        host = address_towards(announcing.target)
    request = announcement(announcing.token.secret, release.manifest.release_id, host, port)
    await keep_announced(announcing.target, request, lambda line: typer.echo(line, err=True))


async def watch_revocations(check: CheckRevoked) -> None:
    """Ends by raising when the catalog takes the release back, or when nobody could say for too long."""
    asked_at = time.monotonic()
    while True:
        await asyncio.sleep(RECHECK_SECONDS)
        try:
            await asyncio.to_thread(check)
            asked_at = time.monotonic()
        except Unreachable as exc:
            if time.monotonic() - asked_at > GRACE_SECONDS:
                raise RevocationsStale(f"{exc}; for a day nobody could say whether it was revoked") from exc


async def report_uploads(torrents: Sequence[SwarmTorrent], view: TransferView, total_bytes: int) -> None:
    """Of a release and its encoded twins together: a line that changes where somebody watches; else one on stderr when
    bytes have left since the last.
    """
    reported, said_at = 0, time.monotonic()
    while True:
        await asyncio.sleep(VIEW_SECONDS)
        states = [await torrent.status() for torrent in torrents]
        uploaded = sum(status.uploaded_bytes for status in states)
        num_peers = max(status.num_peers for status in states)  # who takes both is connected twice
        view.seeding(sum(status.upload_rate for status in states), uploaded, num_peers, total_bytes)
        if view.is_watched or time.monotonic() - said_at < REPORT_SECONDS:
            continue
        said_at = time.monotonic()
        if uploaded != reported:
            reported = uploaded
            typer.echo(f"uploaded {format_size(reported)}, {num_peers} peers connected", err=True)


def _say_seeding(release: Release, endpoint: Peer, web_seeds: Sequence[str], json_events: bool) -> None:
    manifest, listen = release.manifest, format_endpoint(*endpoint)
    # An address that only this machine knows is no use in a link.
    peers = () if is_loopback(endpoint[0]) or endpoint[0] in ("0.0.0.0", "::") else (endpoint,)
    magnet = magnet_of_release(release, web_seeds, peers)
    if json_events:
        event = {
            "event": "seeding",
            "listen": listen,
            "infohash": manifest.torrent.infohash,
            "release_id": manifest.release_id,
            "name": manifest.name,
            "bytes": manifest.total_bytes,
            "magnet": None if magnet is None else str(magnet),
        }
        typer.echo(json.dumps(event))
    else:
        typer.echo(
            f"seeding {manifest.name} ({format_size(manifest.total_bytes)}) on {listen},"
            f" infohash {manifest.torrent.infohash}"
        )
        if magnet is not None:
            typer.echo(f"  {magnet}")
