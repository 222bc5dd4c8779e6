"""``mesh pull`` as a user meets it: real sessions, a static server, a seeder in a process of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.cli.main import main
from mesh.weights.releases.release import MANIFEST_FILE, TORRENT_FILE, Release
from mesh.weights.trust.acceptance_book import AcceptanceBook
from mesh.weights.trust.catalog.plan import RoleKeys
from mesh.weights.trust.catalog.repository import Catalog
from mesh.weights.trust.manifest import LicenseRef
from mesh.weights.trust.revocation import Kind, Reason, Revocation, RevocationList, timestamp
from mesh.weights.trust.signing import PrivateKey, TrustRoot, sign_manifest
from tests.support.catalogs import Keys, plan_of
from tests.support.releases import pack_tiny
from tests.support.seeders import files_below
from tests.support.static_server import static_server
from tests.support.synthetic_release import SyntheticRelease, write_release
from tests.support.tiny_models import write_tiny_checkpoint

TEXT = b"Use it strictly.\n"
SIZES = (20_000, 70_001, 300_000, 16_385, 20_001)  # embed, layers 0 and 1, head, aux
MESH = [sys.executable, "-c", "import sys; from mesh.cli.main import main; sys.exit(main())"]


def publish(directory: Path, trust: Path, *, to_accept: bool = False) -> SyntheticRelease:
    release, key = write_release(directory, SIZES, private=to_accept), PrivateKey.generate()
    if to_accept:
        (directory / "LICENSE").write_bytes(TEXT)
        digest = hashlib.sha256(TEXT).hexdigest()
        license_ = LicenseRef("LicenseRef-strict", digest, acceptance_required=True)
        release = dataclasses.replace(
            release, manifest=dataclasses.replace(release.manifest, license=license_)
        )
    (directory / MANIFEST_FILE).write_bytes(sign_manifest(release.manifest, key))
    (directory / TORRENT_FILE).write_bytes(release.torrent)
    trust.write_bytes(TrustRoot.of(key.public).to_bytes())
    return release


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))


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
        args += ["--data", str(tmp_path / "data")]
        refused, fetched = main(args), [path for path in bucket.requests if "/" in path]
        said = capsys.readouterr().err
        accepted = main([*args, "--accept-license", "LicenseRef-strict"])
        again = main([*args, "--out", str(tmp_path / "again")])  # the record of the word is kept

    assert (refused, accepted, again) == (5, 0, 0)
    assert fetched == []
    assert "Use it strictly." in said
    assert "--accept-license LicenseRef-strict" in said
    (record,) = AcceptanceBook(tmp_path / "data").records()
    record.check_for(strict.manifest, record.node_id)


@pytest.mark.parametrize("shown", [None, b"Do as you like.\n"])
def test_nobody_accepts_a_licence_whose_text_is_not_there_or_is_another(
    trust: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shown: bytes | None
) -> None:
    strict = publish(tmp_path / "strict", trust, to_accept=True)
    text = strict.directory / "LICENSE"
    text.unlink() if shown is None else text.write_bytes(shown)
    args = ["pull", str(strict.directory), "--out", str(tmp_path / "out"), "--data", str(tmp_path / "data")]

    assert main([*args, "--trust", str(trust), "--accept-license", "LicenseRef-strict"]) == 5
    assert "text" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "out").exists()


@pytest.fixture
def catalogued(tmp_path: Path, trust: Path) -> tuple[SyntheticRelease, Catalog, Keys, list[str]]:
    """A release that a catalog lists as acme/tiny; the words that name the catalog and its root."""
    release, keys = write_release(tmp_path / "release", SIZES, private=False), Keys()
    envelope = sign_manifest(release.manifest, keys.acme)
    (release.directory / MANIFEST_FILE).write_bytes(envelope)
    (release.directory / TORRENT_FILE).write_bytes(release.torrent)
    directory = tmp_path / "catalog"
    catalog, _ = Catalog.create(directory, plan_of(keys), keys.all)
    catalog.add_publisher("acme", RoleKeys((keys.acme.public,)), keys.all)
    catalog.add_release("acme", envelope, keys.all)
    root = directory / "metadata" / "1.root.json"
    return release, catalog, keys, ["--catalog", str(directory), "--trust", str(root)]


def test_release_is_named_by_its_catalog_and_fetched_from_a_web_seed(
    catalogued: tuple[SyntheticRelease, Catalog, Keys, list[str]], tmp_path: Path
) -> None:
    release, _, _, words = catalogued
    out = ["--out", str(tmp_path / "out")]
    with static_server(release.directory) as bucket:
        seeded = ["--web-seed", bucket.url]
        assert main(["pull", "acme/tiny", *words, *out]) == 3  # a catalog does not say where
        assert main(["pull", "acme/other", *words, *out, *seeded]) == 3
        assert main(["pull", "acme/tiny", *words[:2], *out, *seeded]) == 2  # whose root?
        assert not (tmp_path / "out").exists()
        assert main(["pull", "acme/tiny", *words, *out, *seeded]) == 0
    assert len(files_below(tmp_path / "out")) == 2 + len(SIZES)


def test_release_that_the_catalog_revoked_or_took_out_is_not_pulled(
    catalogued: tuple[SyntheticRelease, Catalog, Keys, list[str]], tmp_path: Path
) -> None:
    release, catalog, keys, words = catalogued
    pull = ["pull", str(release.directory), *words, "--out", str(tmp_path / "out")]
    now = time.time()
    assert main([*pull, "--dry-run"]) == 0
    taken = Revocation(Kind.RELEASE, release.manifest.release_id, Reason.DMCA, timestamp(now - 60))
    revoked = RevocationList.first(now).adding([taken], now)
    catalog.set_revocations(revoked.to_bytes(), revoked.expires_at, keys.all)

    assert main(pull) == 5
    catalog.remove_release("acme", "tiny", keys.all)
    assert main(pull) == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("into", ["--out", "--store"])
async def test_encoded_twins_come_by_a_magnet_link_and_leave_only_shards(tmp_path: Path, into: str) -> None:
    packed = pack_tiny(tmp_path, encode=True)
    seeder = await asyncio.create_subprocess_exec(
        *MESH, "seed", str(packed.directory), "--trust", str(packed.trust_file), "--json",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    target = tmp_path / "target"
    target.mkdir()
    try:
        assert seeder.stdout is not None
        seeding = json.loads(await seeder.stdout.readline())
        pull = await asyncio.create_subprocess_exec(
            *MESH, "pull", seeding["magnet"], "--peer", seeding["listen"], "--no-dht", "--layers", "0:1",
            "--trust", str(packed.trust_file), into, str(target), "--encoding", "zstd", "--json",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await pull.communicate()
    finally:
        seeder.terminate()
        await seeder.wait()

    assert pull.returncode == 0
    said = json.loads(output.splitlines()[-1])
    assert said["event"] == "fetched"
    assert said["fetched_bytes"] < 0.9 * said["bytes"]
    for file, path in said["paths"].items():
        assert Path(path).read_bytes() == (packed.directory / "tiny" / file).read_bytes()
    if into == "--out":
        assert {path.name for path in target.iterdir()} == {MANIFEST_FILE, TORRENT_FILE, "tiny"}
    assert not list(target.rglob("*.bpz"))


def test_open_release_is_packed_and_shown_with_its_link_and_its_licence_lies_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_tiny_checkpoint(tmp_path / "checkpoint"), tmp_path / "release"
    key = tmp_path / "k.key"
    PrivateKey.generate().save(key)
    pub = tmp_path / "k.pub"
    pub.write_bytes(TrustRoot.of(PrivateKey.load(key).public).to_bytes())
    pack = ["pack", str(source), "--license", "Apache-2.0", "--key", str(key), "--json"]
    assert main([*pack, "--out", str(out), "--web-seed", "https://seed.example/tiny"]) == 0
    packed = json.loads(capsys.readouterr().out)
    assert main(["show", str(out), "--trust", str(pub), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert main([*pack, "--out", str(tmp_path / "private"), "--private"]) == 0
    private = json.loads(capsys.readouterr().out)

    assert packed["magnet"] == shown["magnet"]
    assert packed["magnet"].startswith(f"magnet:?xt=urn:btmh:1220{packed['infohash']}")
    assert "seed.example" in packed["magnet"]
    assert private["magnet"] is None
    assert "Apache License" in (out / "LICENSE").read_text()
    release = Release.open(out, TrustRoot.of(PrivateKey.load(key).public))
    assert release.unlisted_files() == ()
    (out / "LICENSE").write_text("Do as you like.")
    (out / "NOTICE").write_text("of nobody")
    assert release.unlisted_files() == ("LICENSE", "NOTICE")


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


async def test_question_on_a_terminal_is_answered_or_left_with_ctrl_c(trust: Path, tmp_path: Path) -> None:
    strict = publish(tmp_path / "strict", trust, to_accept=True)
    words = ["pull", str(strict.directory), "--trust", str(trust), "--data", str(tmp_path / "data")]
    words += ["--out", str(tmp_path / "out"), "--stall", "0.1"]

    async def answer(says: Callable[[asyncio.subprocess.Process, int], object]) -> int:
        terminal, stdin = os.openpty()
        try:
            pull = await asyncio.create_subprocess_exec(
                *MESH, *words, stdin=stdin, stderr=asyncio.subprocess.PIPE
            )
            assert pull.stderr is not None
            async with asyncio.timeout(20):
                await pull.stderr.readuntil(b"type LicenseRef-strict: ")
                says(pull, terminal)
                await pull.stderr.read()
                return await pull.wait()
        finally:
            os.close(terminal)
            os.close(stdin)

    assert await answer(lambda pull, _: pull.send_signal(signal.SIGINT)) == 130
    assert await answer(lambda _, terminal: os.write(terminal, b"y\n")) == 5
    assert not (tmp_path / "data").exists()
    assert await answer(lambda _, terminal: os.write(terminal, b"LicenseRef-strict\n")) == 6  # nobody sends
    assert len(AcceptanceBook(tmp_path / "data").records()) == 1


async def test_release_that_is_revoked_is_seeded_no_longer(
    catalogued: tuple[SyntheticRelease, Catalog, Keys, list[str]], tmp_path: Path
) -> None:
    release, catalog, keys, words = catalogued
    script = "import sys, mesh.cli.seeding as s; s.RECHECK_SECONDS = 0.2; from mesh.cli.main import main; sys.exit(main())"
    with static_server(release.directory) as bucket:
        args = ["pull", bucket.url, *words, "--out", str(tmp_path / "out"), "--seed", "--json"]
        pull = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            script,
            *args,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert pull.stdout is not None
        async with asyncio.timeout(30):
            while json.loads(await pull.stdout.readline())["event"] != "seeding":
                pass
            now = time.time()
            taken = Revocation(Kind.KEY, keys.acme.public.key_id, Reason.KEY_COMPROMISE, timestamp(now - 60))
            revoked = RevocationList.first(now).adding([taken], now)
            catalog.set_revocations(revoked.to_bytes(), revoked.expires_at, keys.all)
            _, said = await pull.communicate()

    assert pull.returncode == 5
    assert b"was revoked" in said
