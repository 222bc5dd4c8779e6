"""Encoded twins in the swarm: packed and seeded beside the shards, bound to the manifest as those are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mesh.errors import NotFound, ShardCorrupt, TorrentMismatch
from mesh.publishing import pack_release
from mesh.swarm.session import SwarmSession
from mesh.swarm.twins import check_twin_torrent, encoding_of, readable_encoding, seed_twins
from mesh.verification import verify_release
from mesh.weights.releases.release import TWIN_TORRENT_FILE, Release
from mesh.weights.shards.encoding import check_twin
from mesh.weights.shards.twin_check import verify_twins
from mesh.weights.trust.manifest import Manifest
from tests.support.releases import PackedRelease, pack_tiny
from tests.support.seeders import files_below, flip_byte
from tests.support.tiny_models import write_tiny_checkpoint


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PackedRelease:
    return pack_tiny(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def packed(tmp_path: Path, plain: PackedRelease) -> PackedRelease:
    out = tmp_path / "encoded"
    source = write_tiny_checkpoint(tmp_path / "checkpoint")
    manifest = pack_release(source, out, "Apache-2.0", None, plain.key, name="tiny", encode=True)
    return PackedRelease(out, plain.trust_file, plain.key, manifest)


def test_twins_of_a_packed_release_decode_to_its_shards(packed: PackedRelease, plain: PackedRelease) -> None:
    release = packed.open()
    encoding = readable_encoding(release.manifest)
    assert encoding is not None
    assert release.twin_torrent is not None
    check_twin_torrent(release.twin_torrent, encoding, release.manifest)
    shards = {ref.file: ref for ref in release.manifest.shards}
    assert set(release.twin_paths()) == set(encoding.shards)
    for twin, path in release.twin_paths().items():
        check_twin(path, twin, shards[twin.of])
        assert twin.size < shards[twin.of].size
    assert release.unlisted_files() == ()
    # The shards, and so their addresses, are the same with and without twins.
    assert packed.manifest.shards == plain.manifest.shards
    assert packed.manifest.torrent == plain.manifest.torrent
    assert plain.open().twin_torrent is None


async def test_twin_that_rotted_is_not_seeded(packed: PackedRelease) -> None:
    release = packed.open()
    path = next(iter(release.twin_paths().values()))
    flip_byte(path, 40)
    async with SwarmSession() as session:
        with pytest.raises(ShardCorrupt, match=path.name):
            await seed_twins(session, release)
        path.unlink()
        with pytest.raises(NotFound, match=path.name):
            await seed_twins(session, release)
    assert path.name not in files_below(packed.directory)


async def test_release_whose_twins_were_deleted_is_seeded_without_them(packed: PackedRelease) -> None:
    (packed.directory / TWIN_TORRENT_FILE).unlink()
    async with SwarmSession() as session:
        assert await seed_twins(session, packed.open()) is None


def test_torrent_of_other_twins_is_refused(packed: PackedRelease, plain: PackedRelease) -> None:
    encoding = readable_encoding(packed.manifest)
    assert encoding is not None
    with pytest.raises(TorrentMismatch):
        check_twin_torrent(plain.open().torrent, encoding, packed.manifest)


@pytest.mark.parametrize("deep", [False, True])
def test_verify_names_the_twin_that_was_changed_and_the_one_that_is_missing(
    packed: PackedRelease, deep: bool
) -> None:
    seen: list[tuple[int, int]] = []
    release = packed.open()
    assert verify_twins(release, deep=deep, progress=lambda done, total: seen.append((done, total))) == {}
    assert seen[-1][0] == seen[-1][1]
    (changed, path), (missing, gone), *_ = release.twin_paths().items()
    flip_byte(path, path.stat().st_size - 1)
    gone.unlink()
    problems = verify_twins(release, deep=deep)
    assert set(problems) == {changed, missing}
    assert isinstance(problems[changed], ShardCorrupt)
    assert isinstance(problems[missing], NotFound)


def test_only_deep_verification_finds_a_twin_that_was_signed_for_another_shard(packed: PackedRelease) -> None:
    release = packed.open()
    (encoding,) = release.manifest.encodings
    first, second, *rest = encoding.shards
    twins = [
        replace(first, file=second.file, size=second.size, root=second.root),
        replace(second, file=first.file, size=first.size, root=first.root),
        *rest,
    ]
    torrent = encoding.torrent
    lying: Manifest = replace(
        release.manifest,
        encodings=(encoding_of("tiny", torrent.piece_length, torrent.private, twins),),
    )
    liar: Release = replace(release, manifest=lying)
    assert verify_twins(liar) == {}
    assert set(verify_twins(liar, deep=True)) == set(twins[:2])


@pytest.mark.parametrize("deep", [False, True])
def test_twins_are_a_step_of_verification_where_there_are_any(
    packed: PackedRelease, plain: PackedRelease, deep: bool
) -> None:
    def outcome(of: PackedRelease) -> tuple[str | None, str]:
        verification = verify_release(of.open(), of.trust, deep=deep)
        step = next((step for step in verification.steps if step.name == "twins"), None)
        return (None, "") if step is None else (str(step.outcome), str(verification.verdict()))

    assert outcome(plain) == (None, "")
    assert outcome(packed) == ("passed", "None")
    (twin, path), *_ = packed.open().twin_paths().items()
    flip_byte(path, 30)
    found, said = outcome(packed)
    assert found == "failed"
    assert twin.file in said
    (packed.directory / TWIN_TORRENT_FILE).unlink()
    assert outcome(packed)[0] == "not checked"
