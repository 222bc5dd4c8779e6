"""The pull as a process: find, check, say, fetch, keep, and seed on if that was asked for."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from mesh.belief import Belief
from mesh.cli.announcing import address_towards, announcement, keep_announced
from mesh.cli.believing import believe_token
from mesh.cli.seeding import report_uploads
from mesh.cli.stores import open_holdings
from mesh.cli.swarm_options import SwarmOptions
from mesh.cli.transfers import ProgressEvents, TransferView
from mesh.errors import LicenseRefused, NotFound, UsageError
from mesh.layers import LayerRange
from mesh.pulling.finding import Found, find
from mesh.pulling.planning import PullPlan, license_text_of, plan_pull, require_license
from mesh.pulling.source import Coordinator, Link, Source
from mesh.sizes import format_size
from mesh.stopping import run_until_signal
from mesh.swarm.addresses import Peer
from mesh.swarm.companion import Companion, magnet_of, seed_companion
from mesh.swarm.fetching import FetchReport, fetch
from mesh.swarm.session import SwarmSession
from mesh.token import JoinToken
from mesh.weights.disk import naming_full_disk
from mesh.weights.holdings import Holdings
from mesh.weights.release import MANIFEST_FILE, TORRENT_FILE, read_envelope
from mesh.weights.signing import TrustRoot
from mesh.weights.store import ShardStore
from mesh.wire.channel import format_endpoint, is_loopback, parse_endpoint

SCHEMA = "mesh.pull/1"


@dataclass(frozen=True, slots=True)
class PullOptions:
    source: Source
    layers: LayerRange | None
    out: Path | None  # None: into the store
    store: Path | None
    trust: TrustRoot | None  # None: what the token pins
    token: JoinToken | None
    accept_license: str | None
    peers: tuple[Peer, ...]
    web_seeds: tuple[str, ...]
    swarm: SwarmOptions
    dry_run: bool
    keep_seeding: bool
    stall_seconds: float
    json_events: bool


def run_pull(options: PullOptions) -> int | None:
    """Returns 128 plus the number of the signal that ended it. Raises MeshError."""
    return run_until_signal(_pull(options))


async def _pull(options: PullOptions) -> None:
    source = options.source
    link = source.magnet if isinstance(source, Link) else None
    # Until the manifest was read only a magnet says that a release is open: no private one has any.
    is_open = link is not None or options.swarm.finds_peers or options.swarm.upnp
    settings = options.swarm.settings(is_open=is_open, far=_is_far(source))
    with tempfile.TemporaryDirectory(prefix="mesh-pull-") as scratch:
        async with SwarmSession(settings) as session:
            found = await find(
                source,
                session,
                Path(scratch),
                token=options.token,
                peers=options.peers,
                patience_seconds=options.stall_seconds,
            )
            belief = await _believe(found, options)
            plan = plan_pull(
                found,
                trust=belief.trust,
                infohash=link.infohash if link else None,
                layers=options.layers,
                now=time.time(),
            )
            if belief.revocation is not None:
                await asyncio.to_thread(belief.revocation, plan.manifest, plan.refs)
            if plan.manifest.torrent.private and (options.swarm.finds_peers or options.swarm.upnp):
                raise UsageError(
                    f"release {plan.manifest.name} is private: its peers come from its coordinator,"
                    " not from --dht, --lsd or --upnp"
                )
            holdings = open_holdings(options.store) if options.out is None else None
            held = _held(plan, holdings.store.held() if holdings else frozenset(), options)
            _say_plan(plan, held, options)
            if options.dry_run:
                return
            _require_license(plan, found, options)
            with _place(plan, holdings, options) as directory:
                await _transfer(
                    plan, found, holdings.store if holdings else None, directory, session, options, scratch
                )


async def _believe(found: Found, options: PullOptions) -> Belief:
    """The user's own keys if they named any, else what the token pins; a catalog then also says what was revoked."""
    if options.trust is not None:
        return Belief(options.trust)
    assert options.token is not None
    assert isinstance(options.source, Coordinator)
    root = found.trust_root or b""
    return await asyncio.to_thread(believe_token, options.token, options.source.target, root, found.envelope)


async def _transfer(
    plan: PullPlan,
    found: Found,
    store: ShardStore | None,
    directory: Path,
    session: SwarmSession,
    options: PullOptions,
    scratch: str,
) -> None:
    manifest, known = plan.manifest, [*found.peers, *options.peers]
    async with AsyncExitStack() as stack:
        if options.token is not None and isinstance(options.source, Coordinator):
            announcing = asyncio.create_task(_announce(options, manifest.release_id, session, known))
            stack.push_async_callback(_cancel, announcing)
        view = stack.enter_context(TransferView(manifest.name))
        report = await fetch(
            session,
            plan.torrent,
            manifest,
            plan.refs,
            directory,
            lambda: known,
            ProgressEvents(_emit_progress) if options.json_events else view.fetching,
            store=store,
            web_seeds=(*plan.web_seeds, *options.web_seeds),
            stall_seconds=options.stall_seconds,
        )
        view.close()
        _say_fetched(plan, report, directory, options)
        if not options.keep_seeding:
            return
        if not manifest.torrent.private:
            companion = Companion.of(plan.envelope, plan.torrent)
            await seed_companion(session, companion, Path(scratch) / "seeding")
        _say_seeding(plan, session, options)
        torrent = session.torrent(manifest.torrent.infohash)
        assert torrent is not None
        await report_uploads(torrent, view, manifest.total_bytes)


async def _announce(options: PullOptions, release_id: str, session: SwarmSession, known: list[Peer]) -> None:
    assert options.token is not None
    assert isinstance(options.source, Coordinator)
    host, port = session.endpoint
    if session.settings.is_wildcard:
        host = address_towards(options.source.target)
    request = announcement(options.token.secret, release_id, host, port)

    def on_peers(peers: list[Peer]) -> None:
        known.extend(peer for peer in peers if peer not in known)

    await keep_announced(options.source.target, request, lambda line: None, on_peers)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@contextmanager
def _place(plan: PullPlan, holdings: Holdings | None, options: PullOptions) -> Iterator[Path]:
    """Where shards go: the store, which then knows the release, or a directory as ``mesh pack`` writes it."""
    if holdings is not None:
        with holdings.hold(plan.envelope, plan.torrent, plan.manifest, plan.refs) as save_path:
            yield save_path
        return
    out = options.out
    assert out is not None
    if not out.absolute().parent.is_dir():
        raise NotFound(f"{out.absolute().parent} does not exist; make it, or choose another --out")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; choose another --out")
    if (out / MANIFEST_FILE).exists():
        if read_envelope(out / MANIFEST_FILE) != plan.envelope:
            raise UsageError(f"{out} holds another release; choose another --out")
    elif out.is_dir() and any(path.name != plan.manifest.torrent.name for path in out.iterdir()):
        raise UsageError(f"{out} holds other files; choose another --out")
    out.mkdir(exist_ok=True)
    _write(out / TORRENT_FILE, plan.torrent)
    _write(out / MANIFEST_FILE, plan.envelope)
    yield out


def _write(path: Path, data: bytes) -> None:
    written = path.with_name(f".{path.name}.part")
    with naming_full_disk(path):
        written.write_bytes(data)
    written.replace(path)


def _held(plan: PullPlan, roots: frozenset[str], options: PullOptions) -> set[str]:
    """Roots of wanted shards that are here; in a directory by size only, the fetch hashes them."""
    if options.out is None:
        return {ref.root for ref in plan.refs if ref.root in roots}
    below = options.out / plan.manifest.torrent.name
    return {
        ref.root
        for ref in plan.refs
        if (path := below / ref.file).is_file()
        and path.stat().st_blocks * 512 >= ref.size == path.stat().st_size
    }


def _require_license(plan: PullPlan, found: Found, options: PullOptions) -> None:
    try:
        require_license(plan, options.accept_license)
    except LicenseRefused:
        if (text := license_text_of(found, plan.manifest)) is not None:
            shown = text.decode("utf-8", errors="replace")
            if options.json_events:
                _emit({"event": "license", "id": plan.manifest.license.id, "text": shown})
            else:
                typer.echo(shown, err=True)
        raise


def _is_far(source: Source) -> bool:
    return isinstance(source, Coordinator) and not is_loopback(
        parse_endpoint(source.target, what="coordinator")[0]
    )


# -- what the user sees


def _emit(event: dict[str, Any]) -> None:
    typer.echo(json.dumps(event))


def _emit_progress(facts: dict[str, Any]) -> None:
    _emit({"event": "progress", **facts})


def _say_plan(plan: PullPlan, held: set[str], options: PullOptions) -> None:
    manifest, missing = plan.manifest, plan.missing(held)
    missing_bytes = sum(ref.size for ref in missing)
    if options.json_events:
        _emit(
            {
                "event": "plan",
                "schema": SCHEMA,
                "release_id": manifest.release_id,
                "name": manifest.name,
                "infohash": manifest.torrent.infohash,
                "private": manifest.torrent.private,
                "license": manifest.license.id,
                "license_to_accept": manifest.license.acceptance_required,
                "shards": [
                    {"file": ref.file, "bytes": ref.size, "root": ref.root, "held": ref.root in held}
                    for ref in plan.refs
                ],
                "wanted_bytes": plan.wanted_bytes,
                "missing_bytes": missing_bytes,
                "web_seeds": [*plan.web_seeds, *options.web_seeds],
                "dry_run": options.dry_run,
            }
        )
        return
    to_accept = ", to be accepted" if manifest.license.acceptance_required else ""
    some = f" of {len(manifest.shards)}" if len(plan.refs) < len(manifest.shards) else ""
    # What a dry run says is its result; before a fetch it is news.
    typer.echo(
        f"{manifest.name} {manifest.release_id[:16]}, license {manifest.license.id}{to_accept}\n"
        f"  {len(plan.refs)}{some} shards, {format_size(plan.wanted_bytes)}, {format_size(missing_bytes)} to fetch",
        err=not options.dry_run,
    )
    if options.dry_run:
        widest = max(len(ref.file) for ref in plan.refs)
        for ref in plan.refs:
            state = "held" if ref.root in held else "to fetch"
            typer.echo(f"  {ref.file:<{widest}}  {format_size(ref.size):>10}  {state}")


def _say_fetched(plan: PullPlan, report: FetchReport, directory: Path, options: PullOptions) -> None:
    where = options.out if options.out is not None else None
    if options.json_events:
        _emit(
            {
                "event": "fetched",
                "release_id": plan.manifest.release_id,
                "directory": str(where if where is not None else directory),
                "bytes": plan.wanted_bytes,
                "fetched_bytes": report.fetched_bytes,
                "redundant_bytes": report.redundant_bytes,
                "failed_bytes": report.failed_bytes,
                "web_seed_bytes": report.web_seed_bytes,
                "seconds": round(report.seconds, 3),
                "paths": {ref.file: str(path) for ref, path in report.paths.items()},
            }
        )
        return
    web = f", {format_size(report.web_seed_bytes)} of it from web seeds" if report.web_seed_bytes else ""
    typer.echo(
        f"pulled {plan.manifest.name}: {len(plan.refs)} shards, {format_size(plan.wanted_bytes)} verified,"
        f" {format_size(report.fetched_bytes)} fetched in {report.seconds:.1f} s{web}\n"
        f"  release  {plan.manifest.release_id}\n"
        f"  in       {where if where is not None else 'the store; `mesh ls` lists it'}"
    )


def _say_seeding(plan: PullPlan, session: SwarmSession, options: PullOptions) -> None:
    listen = format_endpoint(*session.endpoint)
    magnet = magnet_of(plan.manifest, plan.envelope, plan.torrent, plan.web_seeds)
    if options.json_events:
        _emit({"event": "seeding", "listen": listen, "magnet": None if magnet is None else str(magnet)})
    else:
        typer.echo(f"seeding {plan.manifest.name} on {listen}" + (f"\n  {magnet}" if magnet else ""))
