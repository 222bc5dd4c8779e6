"""The seeder as a process: check, seed, announce, report, until a signal comes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import typer

from mesh.cli.announcing import address_towards, announcement, keep_announced
from mesh.sizes import format_size
from mesh.stopping import run_until_signal
from mesh.swarm.fetching import seed
from mesh.swarm.session import SwarmSession, SwarmSettings
from mesh.swarm.torrent import Peer, SwarmTorrent
from mesh.swarm.twins import seed_twins
from mesh.token import JoinToken
from mesh.weights.release import Release
from mesh.wire.channel import format_endpoint

REPORT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Announcing:
    """Which coordinator to tell, and what admits us there."""

    target: str  # HOST:PORT
    token: JoinToken


def run_seeder(
    release: Release, settings: SwarmSettings, announcing: Announcing | None, *, json_events: bool
) -> int | None:
    """Returns 128 plus the number of the signal that ended it. Raises MeshError."""
    return run_until_signal(_seed(release, settings, announcing, json_events))


async def _seed(
    release: Release, settings: SwarmSettings, announcing: Announcing | None, json_events: bool
) -> None:
    async with SwarmSession(settings) as session:
        torrent = await seed(session, release.torrent, release.manifest, release.directory)
        await seed_twins(session, release)
        _say_seeding(release, session.endpoint, json_events)
        duties = [_report_uploads(torrent)]
        if announcing is not None:
            duties.append(_announce(release, session, announcing))
        # Each lasts until it is cancelled; one that fails ends the other.
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


async def _report_uploads(torrent: SwarmTorrent) -> None:
    """A line on stderr when bytes have left since the last one."""
    reported = 0
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        status = await torrent.status()
        if status.uploaded_bytes != reported:
            reported = status.uploaded_bytes
            typer.echo(f"uploaded {format_size(reported)}, {status.num_peers} peers connected", err=True)


def _say_seeding(release: Release, endpoint: Peer, json_events: bool) -> None:
    manifest, listen = release.manifest, format_endpoint(*endpoint)
    if json_events:
        event = {
            "event": "seeding",
            "listen": listen,
            "infohash": manifest.torrent.infohash,
            "release_id": manifest.release_id,
            "name": manifest.name,
            "bytes": manifest.total_bytes,
        }
        typer.echo(json.dumps(event))
    else:
        typer.echo(
            f"seeding {manifest.name} ({format_size(manifest.total_bytes)}) on {listen},"
            f" infohash {manifest.torrent.infohash}"
        )
