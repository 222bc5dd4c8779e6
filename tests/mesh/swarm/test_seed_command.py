from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from mesh.cli.main import main
from mesh.swarm.fetching import fetch
from mesh.swarm.session import SwarmSession
from mesh.token import JoinToken
from mesh.weights.releases.release import MANIFEST_FILE, TORRENT_FILE
from mesh.weights.trust.signing import PrivateKey, TrustRoot, sign_manifest
from tests.support.synthetic_release import SyntheticRelease, write_release

SIZES = (20_000, 70_001, 300_000, 16_385, 20_001)
MESH = [sys.executable, "-c", "import sys; from mesh.cli.main import main; sys.exit(main())"]


@pytest.fixture
def release(tmp_path: Path) -> SyntheticRelease:
    """Signed by the key of ``trust.json`` beside it."""
    release, key = write_release(tmp_path / "release", SIZES), PrivateKey.generate()
    (release.directory / MANIFEST_FILE).write_bytes(sign_manifest(release.manifest, key))
    (release.directory / TORRENT_FILE).write_bytes(release.torrent)
    (tmp_path / "trust.json").write_bytes(TrustRoot.of(key.public).to_bytes())
    return release


def seed_args(release: SyntheticRelease, *more: str) -> list[str]:
    return ["seed", str(release.directory), "--trust", str(release.directory.parent / "trust.json"), *more]


def snapshot(directory: Path) -> dict[Path, tuple[int, int]]:
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_release_is_seeded_until_a_signal_ends_it(
    release: SyntheticRelease, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    before = snapshot(release.directory)
    process = await asyncio.create_subprocess_exec(
        *MESH, *seed_args(release, "--json"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    seeding = json.loads(await process.stdout.readline())
    host, port = seeding["listen"].rsplit(":", 1)
    manifest = release.manifest
    async with SwarmSession() as node:
        report = await fetch(
            node, release.torrent, manifest, manifest.shards, tmp_path / "node", lambda: [(host, int(port))]
        )
    process.send_signal(number)
    _, errors = await process.communicate()

    assert process.returncode == code
    assert errors == b""
    assert report.fetched_bytes == manifest.total_bytes
    assert seeding["event"] == "seeding"
    assert seeding["infohash"] == manifest.torrent.infohash
    assert seeding["release_id"] == manifest.release_id
    assert snapshot(release.directory) == before


async def test_coordinator_that_is_not_there_yet_does_not_stop_the_seeding(release: SyntheticRelease) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, and nobody accepts
        coordinator = f"127.0.0.1:{nobody.getsockname()[1]}"
        token = JoinToken(bytes(16), bytes(32)).encode()
        process = await asyncio.create_subprocess_exec(
            *MESH,
            *seed_args(release, "--coordinator", coordinator, "--token", token),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        assert (await process.stdout.readline()).startswith(b"seeding tiny")
        complaint = (await process.stderr.readline()).decode()
        assert process.returncode is None
        process.terminate()
        await process.communicate()

    assert f"the coordinator at {coordinator} does not answer" in complaint
    assert token not in complaint
    assert process.returncode == 143


def test_address_that_strangers_reach_needs_insecure(
    release: SyntheticRelease, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(seed_args(release, "--listen", "0.0.0.0:0")) == 2
    assert "--insecure" in capsys.readouterr().err


def test_changed_byte_is_refused_with_the_name_of_its_shard(
    release: SyntheticRelease, capsys: pytest.CaptureFixture[str]
) -> None:
    ref = release.manifest.shards[2]
    with release.path(ref).open("r+b") as file:
        file.seek(100_000)
        file.write(b"!")

    assert main(seed_args(release)) == 4
    assert ref.file in capsys.readouterr().err


def test_missing_shard_is_refused_by_name(
    release: SyntheticRelease, capsys: pytest.CaptureFixture[str]
) -> None:
    release.path(release.manifest.shards[1]).unlink()

    assert main(seed_args(release)) == 3
    assert release.manifest.shards[1].file in capsys.readouterr().err


def test_torrent_of_another_release_is_refused(
    release: SyntheticRelease, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_release(tmp_path / "other", SIZES, seed=1)
    (release.directory / TORRENT_FILE).write_bytes(other.torrent)

    assert main(seed_args(release)) == 4
    assert "torrent" in capsys.readouterr().err


def test_port_in_use_is_said_in_one_line(
    release: SyntheticRelease, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"

        assert main(seed_args(release, "--listen", listen)) == 1
    error = capsys.readouterr().err
    assert listen in error
    assert "in use" in error
    assert error.count(os.linesep) == 1


def test_coordinator_without_a_token_is_refused(
    release: SyntheticRelease, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(seed_args(release, "--coordinator", "127.0.0.1:1")) == 2
    assert "--token" in capsys.readouterr().err
