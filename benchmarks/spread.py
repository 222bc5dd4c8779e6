"""How fast a release spreads: one seeder to one leecher at full speed, and a capped seeder to six at once.

    python -m benchmarks.spread [--cap-mb 6] [--mib 48] [--runs 5] [--json FILE]

Every leecher is a process of its own, on loopback. Beside ours run a bare libtorrent script (with our settings where speed is
compared, with its defaults where spreading is) and an HTTP server with the same cap. Contenders take turns; medians are told.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import libtorrent as lt

from mesh.swarm.fetching import fetch, seed
from mesh.swarm.session import SwarmSession, SwarmSettings
from mesh.swarm.settings import open_libtorrent
from mesh.weights.trust.manifest import Manifest
from tests.support.synthetic_release import SyntheticRelease, write_release

MIB = 1 << 20
NUM_LEECHERS = 6
# What a bare script needs to run on loopback at all; everything else is libtorrent's default.
BARE = {
    "alert_mask": lt.alert_category.storage,
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_outgoing_utp": False,
    "enable_incoming_utp": False,
    "allow_multiple_connections_per_ip": True,
}


def make_release(directory: Path, mib: int) -> SyntheticRelease:
    sizes = (*([mib * MIB // 12] * 12), 20_000)
    release = write_release(directory, sizes, piece_length=MIB)
    (directory / "manifest.json").write_bytes(release.manifest.to_bytes())
    (directory / "release.torrent").write_bytes(release.torrent)
    return release


# -- leechers, each a process: prints its port, reads the ports to dial, prints when it is done


async def leech_ours(directory: Path, save_path: Path) -> None:
    manifest = Manifest.parse((directory / "manifest.json").read_bytes())
    async with SwarmSession() as session:
        print(session.endpoint[1], flush=True)
        ports = json.loads(await asyncio.to_thread(sys.stdin.readline))
        peers = [("127.0.0.1", port) for port in ports]
        torrent = (directory / "release.torrent").read_bytes()
        # The time of a fetch ends when the bytes are there; hashing them again comes on top, and is ours alone.
        done = 0.0

        def watch(progress: Any) -> None:
            nonlocal done
            if progress.state == "verifying" and not done:
                done = time.time()

        report = await fetch(session, torrent, manifest, manifest.shards, save_path, lambda: peers, watch)
        print(json.dumps([done, report.payload_bytes]), flush=True)
        await asyncio.to_thread(sys.stdin.readline)


def leech_bare(directory: Path, save_path: Path, *, tuned: bool) -> None:
    session = _bare_session(None, tuned=tuned)
    print(session.listen_port(), flush=True)
    ports = json.loads(sys.stdin.readline())
    handle = session.add_torrent(_params(directory, save_path))
    for port in ports:
        handle.connect_peer(("127.0.0.1", port))
    while not (status := handle.status()).is_finished:
        time.sleep(0.02)
    _flush(session, handle)
    print(json.dumps([time.time(), status.total_payload_download]), flush=True)
    sys.stdin.readline()


def _flush(session: Any, handle: Any) -> None:
    """ "Finished" comes before the bytes are in the files; ours waits for them, so the bare script does, too."""
    handle.flush_cache()
    while not any(isinstance(alert, lt.cache_flushed_alert) for alert in session.pop_alerts()):
        session.wait_for_alert(1000)


def _params(directory: Path, save_path: Path) -> Any:
    params = lt.load_torrent_buffer((directory / "release.torrent").read_bytes())
    params.save_path = str(save_path)
    params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    return params


def _bare_session(cap: int | None, *, tuned: bool) -> Any:
    if tuned:
        return open_libtorrent(SwarmSettings(max_upload_bytes_per_second=cap), 0)
    params = lt.session_params()
    params.settings = BARE | {"listen_interfaces": "127.0.0.1:0", "upload_rate_limit": cap or 0}
    session = lt.session(params)
    everybody = lt.ip_filter()
    everybody.add_rule("0.0.0.0", "255.255.255.255", 1 << session.global_peer_class_id)
    session.set_peer_class_filter(everybody)  # or the cap does not bind loopback
    return session


# -- one run


@contextlib.asynccontextmanager
async def _seeder(release: SyntheticRelease, kind: str, cap: int | None) -> AsyncIterator[int]:
    if kind == "ours":
        async with SwarmSession(SwarmSettings(max_upload_bytes_per_second=cap)) as session:
            await seed(session, release.torrent, release.manifest, release.directory)
            yield session.endpoint[1]
        return
    bare = _bare_session(cap, tuned=kind == "tuned")
    handle = bare.add_torrent(_params(release.directory, release.directory))
    await asyncio.to_thread(_wait_until_seeding, handle)
    yield bare.listen_port()


def _wait_until_seeding(handle: Any) -> None:
    while not handle.status().is_seeding:
        time.sleep(0.02)


async def spread(release: SyntheticRelease, kind: str, num_leechers: int, cap: int | None) -> float:
    """Seconds until the last leecher has everything."""
    with tempfile.TemporaryDirectory() as scratch:
        async with _seeder(release, kind, cap) as seeder:
            leechers = [
                await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "benchmarks.spread", "--leech", kind,
                    str(release.directory), f"{scratch}/{index}",
                    stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                )
                for index in range(num_leechers)
            ]  # fmt: skip
            ports = [int(await _line(leecher)) for leecher in leechers]
            began = time.time()
            for leecher in leechers:
                _tell(leecher, json.dumps([seeder, *ports]))
            done = [json.loads(await _line(leecher))[0] for leecher in leechers]
            for leecher in leechers:
                _tell(leecher, "")
                await leecher.wait()
    return float(max(done) - began)


def http_seconds(total_bytes: int, num_leechers: int, cap: int) -> float:
    """An HTTP server that shares its cap sends every byte to everybody: arithmetic, no run needed."""
    return total_bytes * num_leechers / cap


async def _line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    if not (line := await process.stdout.readline()):
        raise SystemExit("a leecher ended early; its words are above")
    return line


def _tell(process: asyncio.subprocess.Process, text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text.encode() + b"\n")


# -- all of it


async def measure(mib: int, fast_mib: int, cap: int, runs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        small = make_release(Path(scratch, "small"), mib)
        large = make_release(Path(scratch, "large"), fast_mib)
        speed: dict[str, list[float]] = {"ours": [], "tuned": []}
        for _ in range(runs):
            for kind, rates in speed.items():
                rates.append(large.manifest.total_bytes / await spread(large, kind, 1, None) / 1e6)
        one: dict[str, list[float]] = {"ours": [], "bare": []}
        six: dict[str, list[float]] = {"ours": [], "bare": []}
        for _ in range(max(1, runs // 2)):
            for kind in one:
                one[kind].append(await spread(small, kind, 1, cap))
                six[kind].append(await spread(small, kind, NUM_LEECHERS, cap))
    median = statistics.median
    total = small.manifest.total_bytes
    return {
        "schema": "mesh.benchmark.spread/1",
        "speed_mb_s": {kind: median(rates) for kind, rates in speed.items()},
        "speed_ratio": median(
            ours / tuned for ours, tuned in zip(speed["ours"], speed["tuned"], strict=True)
        ),
        "one_seconds": {kind: median(seconds) for kind, seconds in one.items()},
        "six_seconds": {kind: median(seconds) for kind, seconds in six.items()},
        "six_to_one": {kind: median(six[kind]) / median(one[kind]) for kind in one}
        | {"http": http_seconds(total, NUM_LEECHERS, cap) / http_seconds(total, 1, cap)},
    }


def report(result: dict[str, Any]) -> str:
    rates, ratios = result["speed_mb_s"], result["six_to_one"]
    lines = [
        f"one to one: ours {rates['ours']:.0f} MB/s, bare libtorrent with our settings {rates['tuned']:.0f} MB/s,"
        f" ratio {result['speed_ratio']:.2f}",
        f"capped, to {NUM_LEECHERS} in times of one:",
    ]
    return "\n".join(
        [*lines, *(f"  {kind:<5} {ratio:5.2f} {'#' * round(ratio * 8)}" for kind, ratio in ratios.items())]
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cap-mb", type=float, default=6.0)
    parser.add_argument("--mib", type=int, default=48)
    parser.add_argument("--fast-mib", type=int, default=480)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--leech", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.leech:
        kind, directory, save_path = args.leech[0], Path(args.leech[1]), Path(args.leech[2])
        if kind == "ours":
            asyncio.run(leech_ours(directory, save_path))
        else:
            leech_bare(directory, save_path, tuned=kind == "tuned")
        return
    result = asyncio.run(measure(args.mib, args.fast_mib, int(args.cap_mb * 1e6), args.runs))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    print(report(result))


if __name__ == "__main__":
    main()
