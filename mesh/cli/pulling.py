"""The pull as a process: find, check, say, fetch, keep, and seed on if that was asked for."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from mesh.cli.announcing import address_towards, announcement, keep_announced
from mesh.cli.pull_belief import Believing
from mesh.cli.pull_terms import Word, show_texts
from mesh.cli.seeding import do_all, report_uploads, watch_revocations
from mesh.cli.stores import open_holdings
from mesh.cli.swarm_options import SwarmOptions
from mesh.cli.transfers import ProgressEvents, TransferView
from mesh.errors import NotFound, UsageError
from mesh.layers import LayerRange
from mesh.pulling.finding import Found, find
from mesh.pulling.planning import PullPlan, plan_pull
from mesh.pulling.source import Coordinator, Link, Listed, Source
from mesh.sizes import format_size
from mesh.stopping import run_until_signal
from mesh.swarm.addresses import Peer
from mesh.swarm.companion import Companion, magnet_of, seed_companion
from mesh.swarm.encoding_choice import Encoding
from mesh.swarm.fetching import FetchReport, fetch
from mesh.swarm.session import SwarmSession
from mesh.swarm.twin_fetching import ReleaseTorrents, fetch_release
from mesh.token import JoinToken
from mesh.weights.disk import naming_full_disk
from mesh.weights.releases.holdings import Holdings
from mesh.weights.releases.release import MANIFEST_FILE, TORRENT_FILE, read_envelope
from mesh.weights.releases.store import ShardStore
from mesh.weights.trust.license_text import LicenseTexts
from mesh.weights.trust.manifest import ShardRef
from mesh.wire.channel import format_endpoint, is_loopback, parse_endpoint

SCHEMA = "mesh.pull/1"
STORE_DIRECTORY = ".shards"  # beside --out, while twins are decoded


@dataclass(frozen=True, slots=True)
class PullOptions:
    source: Source
    layers: LayerRange | None
    out: Path | None  # None: into the store
    store: Path | None
    believing: Believing
    token: JoinToken | None  # of the coordinator that ``source`` names
    word: Word
    encoding: Encoding
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
    source, release_id = options.source, None
    if isinstance(source, Listed):
        source, release_id = await asyncio.to_thread(options.believing.look_up, source, options.web_seeds)
        token = options.believing.token
        options = replace(
            options,
            source=source,
            token=JoinToken.parse(token) if token is not None and isinstance(source, Coordinator) else None,
        )
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
            # In a thread: a catalog's files come over the network, its revocation list as late as it is asked for.
            plan = await asyncio.to_thread(
                lambda: plan_pull(
                    found,
                    belief=options.believing.belief(source, found),
                    infohash=link.infohash if link else None,
                    release_id=release_id,
                    layers=options.layers,
                    now=time.time(),
                )
            )
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
            if not await asyncio.to_thread(options.word.is_given, plan.manifest):
                show = _emit_texts if options.json_events else show_texts
                await options.word.take(plan.manifest, found.texts, show)
            with (
                _place(plan, found.texts, holdings, options) as directory,
                _store(holdings, directory, plan, options) as store,
            ):
                await _transfer(plan, found, store, directory, session, options, scratch)


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
        on_progress = ProgressEvents(_emit_progress) if options.json_events else view.fetching
        web_seeds, stall = (*plan.web_seeds, *options.web_seeds), options.stall_seconds
        if store is None:
            report = await fetch(
                session, plan.torrent, manifest, plan.refs, directory, lambda: known, on_progress,
                web_seeds=web_seeds, stall_seconds=stall,
            )  # fmt: skip
        else:
            report = await fetch_release(
                session, ReleaseTorrents(manifest, plan.torrent, plan.twin_torrent), plan.refs, directory,
                lambda: known, on_progress, store=store, web_seeds=web_seeds, stall_seconds=stall,
                encoding=_encoding(plan, known, options),
            )  # fmt: skip
        view.close()
        _say_fetched(plan, report, directory, options)
        if not options.keep_seeding:
            return
        if not manifest.torrent.private:
            companion = Companion.of(plan.envelope, plan.torrent, plan.twin_torrent)
            await seed_companion(session, companion, Path(scratch) / "seeding")
        _say_seeding(plan, session, options)
        infohashes = [
            manifest.torrent.infohash,
            *(encoding.torrent.infohash for encoding in manifest.encodings),
        ]
        torrents = [torrent for hash_ in infohashes if (torrent := session.torrent(hash_)) is not None]
        duties = [report_uploads(torrents, view, manifest.total_bytes)]
        if options.believing.belief_may_end(options.source):
            duties.append(watch_revocations(lambda: _check_revoked(plan, found, options)))
        await do_all(duties)


def _check_revoked(plan: PullPlan, found: Found, options: PullOptions) -> None:
    """Asks the catalog as it is then. Raises ReleaseRevoked, RevocationsStale, NotFound and kin."""
    belief = options.believing.belief(options.source, found)
    if belief.revocation is not None:
        belief.revocation(plan.manifest, plan.refs)


def _encoding(plan: PullPlan, known: Sequence[Peer], options: PullOptions) -> Encoding:
    """Web seeds have no twins: where nobody else can be asked it is not worth waiting for one."""
    if options.encoding is Encoding.AUTO and not (known or options.swarm.finds_peers or options.token):
        return Encoding.RAW
    return options.encoding


@contextmanager
def _store(
    holdings: Holdings | None, directory: Path, plan: PullPlan, options: PullOptions
) -> Iterator[ShardStore | None]:
    """Where twins are decoded into. Beside a directory that is a store of its own, which ends when all shards are there."""
    may_come = plan.twin_torrent is not None and options.encoding is not Encoding.RAW
    if holdings is None and not may_come:
        yield None
        return
    store = holdings.store if holdings is not None else ShardStore(directory / STORE_DIRECTORY)
    yield store
    for encoding in plan.manifest.encodings:
        # Twins have done their work. A cut-off pull keeps them, to go on from.
        shutil.rmtree(directory / encoding.torrent.name, ignore_errors=True)
    if holdings is None:
        shutil.rmtree(directory / STORE_DIRECTORY, ignore_errors=True)


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
def _place(
    plan: PullPlan, texts: LicenseTexts | None, holdings: Holdings | None, options: PullOptions
) -> Iterator[Path]:
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
    elif out.is_dir() and any(path.name not in _own_names(plan) for path in out.iterdir()):
        raise UsageError(f"{out} holds other files; choose another --out")
    out.mkdir(exist_ok=True)
    _write(out / TORRENT_FILE, plan.torrent)
    _write(out / MANIFEST_FILE, plan.envelope)
    if texts is not None and texts.are_of(plan.manifest.license):
        for name, text in texts.named:
            _write(out / name, text)
    yield out


def _own_names(plan: PullPlan) -> set[str]:
    twins = (encoding.torrent.name for encoding in plan.manifest.encodings)
    return {plan.manifest.torrent.name, STORE_DIRECTORY, *twins}


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


def _emit_texts(license_id: str, texts: LicenseTexts) -> None:
    shown = {name: text.decode("utf-8", errors="replace") for name, text in texts.named}
    _emit({"event": "license", "id": license_id, "text": shown["LICENSE"], "texts": shown})


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
                "paths": {ref.file: str(_path(ref, report, options, plan)) for ref in plan.refs},
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


def _path(ref: ShardRef, report: FetchReport, options: PullOptions, plan: PullPlan) -> Path:
    """The store beside a directory goes; its shards stay under their own names."""
    return report.paths[ref] if options.out is None else options.out / plan.manifest.torrent.name / ref.file


def _say_seeding(plan: PullPlan, session: SwarmSession, options: PullOptions) -> None:
    listen = format_endpoint(*session.endpoint)
    magnet = magnet_of(
        plan.manifest, plan.envelope, plan.torrent, plan.web_seeds, twin_torrent=plan.twin_torrent
    )
    if options.json_events:
        _emit({"event": "seeding", "listen": listen, "magnet": None if magnet is None else str(magnet)})
    else:
        typer.echo(f"seeding {plan.manifest.name} on {listen}" + (f"\n  {magnet}" if magnet else ""))
