"""Any directory as a release: the same signature, verification and torrent as a model's, the files unchanged."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import libtorrent as lt
import pytest

from coordinator.verified_release import verify
from mesh.cli.main import main
from mesh.errors import IntegrityError, MeshError, NotFound, ShardCorrupt, UsageError
from mesh.publishing import pack_release
from mesh.release_draft import piece_length_for
from mesh.swarm.fetching import fetch, seed
from mesh.swarm.metainfo import check_torrent
from mesh.swarm.session import SwarmSession
from mesh.verification import problems_of
from mesh.weights.releases.release import Release
from mesh.weights.shards.shard import PIECE_LENGTH, read_shard
from mesh.weights.trust.manifest import Manifest
from mesh.weights.trust.signing import PrivateKey, TrustRoot

KEY = PrivateKey.from_seed(bytes(32))
TRUST = TrustRoot.of(KEY.public)
FILES = {
    "README.md": b"# a data set\n",
    "LICENSE": b"be good",
    ".gitattributes": b"* text\n",
    "arxiv/_SUCCESS": b"",
    "arxiv/arxiv_00.jsonl.zst": bytes(range(256)) * 400,
    "arxiv/again.jsonl.zst": bytes(range(256)) * 400,
    "wikipedia/de/ä 1.jsonl": b"{}\n",
}


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        path = tmp_path / "red pajama" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "red pajama" / "empty").mkdir()
    return tmp_path / "red pajama"


def pack(source: Path, out: Path, **options: Any) -> Manifest:
    wanted = {
        "license_id": "LicenseRef-good",
        "license_text": None,
        "created": "2026-01-02T03:04:05Z",
        **options,
    }
    return pack_release(source, out, key=KEY, kind="files", **wanted)


def test_the_files_are_in_the_release_as_they_were(data_set: Path, tmp_path: Path) -> None:
    manifest = pack(data_set, tmp_path / "out")
    release = Release.open(tmp_path / "out", TRUST)
    assert release.manifest == manifest
    assert (manifest.family, manifest.is_model, manifest.name) == ("files", False, "red-pajama")
    assert [ref.file for ref in manifest.shards] == [*sorted(FILES), "release-aux.safetensors"]
    for ref in manifest.shards[:-1]:
        assert release.shard_path(ref).read_bytes() == FILES[ref.file]
    assert problems_of(release) == {}
    assert release.unlisted_files() == ()
    check_torrent(release.torrent, manifest)
    assert manifest.provenance.arguments == ("--as", "files")


def test_libtorrent_makes_the_same_torrent_of_the_same_files(data_set: Path, tmp_path: Path) -> None:
    manifest = pack(data_set, tmp_path / "out")
    made = lt.create_torrent(
        lt.list_files(str(tmp_path / "out" / "red-pajama")), PIECE_LENGTH, lt.create_torrent.v2_only
    )
    made.set_priv(True)
    lt.set_piece_hashes(made, str(tmp_path / "out"))
    info = lt.bencode(made.generate()[b"info"])
    assert hashlib.sha256(info).hexdigest() == manifest.torrent.infohash
    loaded = lt.load_torrent_file(str(tmp_path / "out" / "release.torrent"))
    assert str(loaded.info_hashes.v2) == manifest.torrent.infohash


def test_terms_go_with_them(data_set: Path, tmp_path: Path) -> None:
    (data_set / "Notice.txt").write_bytes(b"made by us")
    manifest = pack(data_set, tmp_path / "out", policy=b"no harm")
    ref = manifest.shard("aux")
    aux = read_shard(Release.open(tmp_path / "out", TRUST).shard_path(ref), ref)
    assert {name: bytes(aux.bytes_of(name)) for name in aux.tensors} == {
        "LICENSE": b"be good", "NOTICE": b"made by us", "USE_POLICY": b"no harm"
    }  # fmt: skip
    assert manifest.license.notice_digest == hashlib.sha256(b"made by us").hexdigest()
    assert manifest.license.policy_digest == hashlib.sha256(b"no harm").hexdigest()
    assert manifest.license.acceptance_required


def test_files_are_linked_or_copied_and_the_release_is_the_same(data_set: Path, tmp_path: Path) -> None:
    linked = pack(data_set, tmp_path / "linked")
    copied = pack(data_set, tmp_path / "copied", copy=True)
    assert linked == copied
    name = "red-pajama/README.md"
    assert (tmp_path / "linked" / name).samefile(data_set / "README.md")
    assert not (tmp_path / "copied" / name).samefile(data_set / "README.md")


def test_where_no_link_can_be_made_it_is_copied(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*given: Any, **named: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("mesh.weights.shards.contents.os.link", refused)
    pack(data_set, tmp_path / "out")
    assert not (tmp_path / "out" / "red-pajama" / "README.md").samefile(data_set / "README.md")
    assert problems_of(Release.open(tmp_path / "out", TRUST)) == {}


def test_a_changed_missing_or_grown_file_is_named(data_set: Path, tmp_path: Path) -> None:
    manifest = pack(data_set, tmp_path / "out", copy=True)
    release = Release.open(tmp_path / "out", TRUST)
    paths = {ref.file: release.shard_path(ref) for ref in manifest.shards}
    paths["README.md"].write_bytes(b"# A data set\n")
    paths["arxiv/_SUCCESS"].write_bytes(b"!")
    paths["wikipedia/de/ä 1.jsonl"].unlink()
    problems = {ref.file: type(problem) for ref, problem in problems_of(release).items()}
    assert problems == {
        "README.md": ShardCorrupt, "arxiv/_SUCCESS": ShardCorrupt, "wikipedia/de/ä 1.jsonl": NotFound
    }  # fmt: skip


def make_link(directory: Path) -> None:
    (directory / "x").symlink_to("README.md")


def make_directory_link(directory: Path) -> None:
    (directory / "x").symlink_to(directory.parent)


def make_pipe(directory: Path) -> None:
    os.mkfifo(directory / "x")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (make_link, "x is a symbolic link"),
        (make_directory_link, "x is a symbolic link"),
        (make_pipe, "x is a device, pipe or socket"),
        (lambda d: (d / "readme.MD").touch(), "one path on some systems"),
        (lambda d: (d / "a\nb").touch(), "printable"),
        (lambda d: (d / os.fsdecode(b"\xff")).touch(), "printable"),
        (lambda d: (d / "what?").touch(), "what"),
        (lambda d: (d / "aux.txt").touch(), "device's name"),
        (lambda d: (d / "Release-aux.safetensors").touch(), "one path on some systems"),
    ],
)
def test_what_a_release_cannot_carry_is_named_before_anything_is_written(
    data_set: Path, tmp_path: Path, spoil: Any, says: str
) -> None:
    spoil(data_set)
    with pytest.raises(UsageError, match=says):
        pack(data_set, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [data_set]


def test_no_directory_an_empty_one_and_one_that_holds_its_own_release_are_refused(
    data_set: Path, tmp_path: Path
) -> None:
    for source, out, says in (
        (tmp_path / "no", "out", "does not exist"),
        (data_set / "README.md", "out", "is one file"),
        (data_set / "empty", "out", "has no files"),
        (data_set, "red pajama/out", "is inside"),
    ):
        with pytest.raises(MeshError, match=says):
            pack(source, tmp_path / out)


def test_more_files_than_a_manifest_takes_are_refused_before_they_are_hashed(tmp_path: Path) -> None:
    for index in range(14_000):
        (tmp_path / f"many/{index // 1000}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"many/{index // 1000}/{index:040d}").touch()
    with pytest.raises(UsageError, match=r"14001 files make a manifest of .* at most 2\.0 MiB"):
        pack(tmp_path / "many", tmp_path / "out", license_id="apache-2.0")
    assert not (tmp_path / "out").exists()


def test_pieces_grow_where_a_torrent_would_have_too_many() -> None:
    assert piece_length_for(138_000_000_000) == PIECE_LENGTH
    assert piece_length_for(5 * 10**12) == 32 * 1024 * 1024


async def test_a_peer_gets_every_file_and_the_empty_one(data_set: Path, tmp_path: Path) -> None:
    manifest = pack(data_set, tmp_path / "out")
    release = Release.open(tmp_path / "out", TRUST)
    async with SwarmSession() as seeder, SwarmSession() as leecher:
        await seed(seeder, release.torrent, manifest, release.directory)
        report = await fetch(
            leecher, release.torrent, manifest, manifest.shards, tmp_path / "got", lambda: [seeder.endpoint]
        )
    assert {ref.file: path.read_bytes() for ref, path in report.paths.items() if ref.role == "file"} == FILES


def test_a_coordinator_refuses_it_in_one_line(data_set: Path, tmp_path: Path) -> None:
    pack(data_set, tmp_path / "out")
    with pytest.raises(UsageError, match="red-pajama holds files, not a model"):
        verify(tmp_path / "out", TRUST)


def test_the_commands_speak_of_files(
    data_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "new", "--out", str(tmp_path)]) == 0
    out, trust = str(tmp_path / "out"), str(tmp_path / "publisher.pub")
    command = [
        "pack", str(data_set), "--as", "files", "--out", out, "--license", "LicenseRef-good",
        "--key", str(tmp_path / "publisher.key"),
    ]  # fmt: skip
    assert main([*command, "--quantize", "q4_0"]) == UsageError.exit_code
    assert main(command) == 0
    assert "packed red-pajama: 8 files" in capsys.readouterr().out
    assert main(["show", out, "--trust", trust]) == 0
    shown = capsys.readouterr().out
    assert "files      7, " in shown
    assert "llama-mesh.source/1" in shown
    assert main(["show", out, "--trust", trust, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["family"] == "files"
    assert main(["verify", out, "--trust", trust]) == 0
    (data_set / "README.md").write_bytes(b"edited in place: the release holds the same file")
    assert main(["verify", out, "--trust", trust]) == IntegrityError.exit_code
