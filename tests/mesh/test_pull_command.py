"""``mesh pull`` as a user meets it: real sessions, a static server, a seeder in a process of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from pathlib import Path

import pytest

from mesh.cli.main import main
from mesh.weights.manifest import LicenseRef
from mesh.weights.release import MANIFEST_FILE, TORRENT_FILE
from mesh.weights.signing import PrivateKey, TrustRoot, sign_manifest
from tests.support.seeders import files_below
from tests.support.static_server import static_server
from tests.support.synthetic_release import SyntheticRelease, write_release

SIZES = (20_000, 70_001, 300_000, 16_385, 20_001)  # embed, layers 0 and 1, head, aux
MESH = [sys.executable, "-c", "import sys; from mesh.cli.main import main; sys.exit(main())"]


def publish(directory: Path, trust: Path, *, to_accept: bool = False) -> SyntheticRelease:
    release, key = write_release(directory, SIZES, private=to_accept), PrivateKey.generate()
    if to_accept:
        license_ = LicenseRef("LicenseRef-strict", "0" * 64, acceptance_required=True)
        release = dataclasses.replace(
            release, manifest=dataclasses.replace(release.manifest, license=license_)
        )
    (directory / MANIFEST_FILE).write_bytes(sign_manifest(release.manifest, key))
    (directory / TORRENT_FILE).write_bytes(release.torrent)
    trust.write_bytes(TrustRoot.of(key.public).to_bytes())
    return release


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    return tmp_path / "trust.json"


@pytest.fixture
def release(tmp_path: Path, trust: Path) -> SyntheticRelease:
    return publish(tmp_path / "release", trust)


def events(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    return {event["event"]: event for event in map(json.loads, capsys.readouterr().out.splitlines())}


def test_layers_of_a_release_come_from_a_web_seed_into_a_directory(
    release: SyntheticRelease, trust: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with static_server(release.directory) as bucket:
        args = ["pull", bucket.url, "--layers", "1:2", "--out", str(out), "--trust", str(trust), "--json"]
        assert main(args) == 0

    said = events(capsys)
    wanted = {"layer-00001.safetensors", "head.safetensors"}
    assert files_below(out) == {MANIFEST_FILE, TORRENT_FILE, *wanted}
    assert said["plan"]["missing_bytes"] == 300_000 + 16_385 == said["fetched"]["fetched_bytes"]
    assert said["progress"]["done_bytes"] == said["plan"]["wanted_bytes"]


def test_dry_run_says_what_is_missing_and_fetches_nothing(
    release: SyntheticRelease, trust: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    code = main(["pull", str(release.directory), "--dry-run", "--out", str(out), "--trust", str(trust)])

    assert code == 0
    assert "layer-00000.safetensors" in capsys.readouterr().out
    assert not out.exists()


async def test_magnet_link_of_a_seeder_brings_manifest_and_shards_into_the_store(
    release: SyntheticRelease, trust: Path, tmp_path: Path
) -> None:
    seeder = await asyncio.create_subprocess_exec(
        *MESH, "seed", str(release.directory), "--trust", str(trust), "--json", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert seeder.stdout is not None
        seeding = json.loads(await seeder.stdout.readline())
        store = tmp_path / "store"
        store.mkdir()
        args = ["pull", seeding["magnet"], "--peer", seeding["listen"], "--no-dht", "--trust", str(trust)]
        pull = await asyncio.create_subprocess_exec(
            *MESH, *args, "--store", str(store), "--json", stdout=asyncio.subprocess.PIPE
        )
        output, _ = await pull.communicate()
    finally:
        seeder.terminate()
        await seeder.wait()

    assert pull.returncode == 0
    last = json.loads(output.splitlines()[-1])
    assert last["event"] == "fetched"
    assert files_below(store / "blobs") == {ref.root for ref in release.manifest.shards}


def test_licence_that_was_not_accepted_ends_it_with_5_and_fetches_nothing(
    trust: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = publish(tmp_path / "strict", trust, to_accept=True)
    with static_server(strict.directory) as bucket:
        args = ["pull", bucket.url, "--out", str(tmp_path / "out"), "--trust", str(trust)]
        refused, fetched = main(args), [path for path in bucket.requests if "/" in path]
        accepted = main([*args, "--accept-license", "LicenseRef-strict"])

    assert (refused, accepted) == (5, 0)
    assert fetched == []
    assert "--accept-license LicenseRef-strict" in capsys.readouterr().err


def test_wrong_publisher_wrong_link_and_private_release_in_the_dht_are_refused(
    release: SyntheticRelease, trust: Path, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.json"
    stranger.write_bytes(TrustRoot.of(PrivateKey.generate().public).to_bytes())
    out = ["--out", str(tmp_path / "out")]
    with static_server(release.directory) as bucket:
        wrong = f"magnet:?xt=urn:btmh:1220{'ab' * 32}&ws={bucket.url}"
        assert main(["pull", bucket.url, "--trust", str(stranger), *out]) == 4
        assert main(["pull", wrong, "--no-dht", "--trust", str(trust), *out]) == 4
    assert main(["pull", bucket.url, "--trust", str(trust), *out]) == 6  # nobody listens there any more
    assert main(["pull", "nothing", "--trust", str(trust), *out]) == 3
    assert not (tmp_path / "out").exists()
