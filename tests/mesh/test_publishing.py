"""Packing: the same input gives the same bytes, whatever fails leaves nothing, memory stays bounded."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import libtorrent as lt
import pytest
from safetensors import safe_open

from mesh.architecture import LlamaConfig
from mesh.errors import CheckpointUnsupported, IntegrityError, NotEnoughDisk, NotFound, UsageError
from mesh.publishing import pack_release
from mesh.release_draft import creation_time
from mesh.swarm.metainfo import check_torrent, info_of
from mesh.verification import problems_of
from mesh.weights.releases.release import Release
from mesh.weights.shards.shard import PIECE_LENGTH, read_shard
from mesh.weights.trust.manifest import Manifest
from mesh.weights.trust.signing import PrivateKey, TrustRoot
from tests.mesh.weights.tiny_gguf import write_tiny_gguf
from tests.support.tiny_models import write_tiny_checkpoint

KEY = PrivateKey.from_seed(bytes(32))
TRUST = TrustRoot.of(KEY.public)
CREATED = "2026-01-02T03:04:05Z"


def pack(source: Path, out: Path, **options: Any) -> Manifest:
    wanted = {"license_id": "apache-2.0", "license_text": None, "key": KEY, "created": CREATED, **options}
    return pack_release(source, out, **wanted)


def everything_in(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny-llama", num_layers=3)


def test_a_packed_release_verifies_and_says_what_it_is(tiny: Path, tmp_path: Path) -> None:
    manifest = pack(tiny, tmp_path / "out")
    release = Release.open(tmp_path / "out", TRUST)
    assert release.manifest == manifest
    assert problems_of(release) == {}
    assert release.unlisted_files() == ()
    check_torrent(release.torrent, manifest)
    assert [(ref.role, ref.layer) for ref in manifest.shards] == [
        ("embed", None), ("layer", 0), ("layer", 1), ("layer", 2), ("head", None), ("aux", None)
    ]  # fmt: skip
    assert (manifest.name, manifest.quantization, manifest.created) == ("tiny-llama", "F32", CREATED)
    assert manifest.license.id == "Apache-2.0"
    assert not manifest.license.acceptance_required
    assert not manifest.torrent.private  # nobody has to accept this licence


def test_libtorrent_agrees_with_infohash_and_files(tiny: Path, tmp_path: Path) -> None:
    manifest = pack(tiny, tmp_path / "out")
    loaded = lt.load_torrent_file(str(tmp_path / "out" / "release.torrent"))
    assert str(loaded.info_hashes.v2) == manifest.torrent.infohash
    assert hashlib.sha256(info_of(manifest)).hexdigest() == manifest.torrent.infohash
    assert not loaded.ti.priv()
    assert loaded.ti.piece_length() == PIECE_LENGTH
    made = lt.create_torrent(
        lt.list_files(str(tmp_path / "out" / "tiny-llama")), PIECE_LENGTH, lt.create_torrent.v2_only
    )
    lt.set_piece_hashes(made, str(tmp_path / "out"))
    tree = made.generate()[b"info"][b"file tree"]
    assert {name.decode(): entry[b""][b"pieces root"].hex() for name, entry in tree.items()} == {
        ref.file: ref.root for ref in manifest.shards
    }


def test_aux_holds_what_a_node_needs_to_speak(tiny: Path, tmp_path: Path) -> None:
    manifest = pack(tiny, tmp_path / "out")
    release = Release.open(tmp_path / "out", TRUST)
    aux = read_shard(release.shard_path(manifest.shard("aux")), manifest.shard("aux"))
    assert set(aux.tensors) == {"tokenizer.json", "config.json", "chat_template.jinja", "LICENSE"}
    assert bytes(aux.bytes_of("tokenizer.json")) == (tiny / "tokenizer.json").read_bytes()
    assert LlamaConfig.from_json(json.loads(bytes(aux.bytes_of("config.json")))) == manifest.config
    assert (
        hashlib.sha256(aux.bytes_of("LICENSE")).hexdigest()
        == manifest.license.text_digest
        == aux.license_digest
    )
    assert b"Apache License" in bytes(aux.bytes_of("LICENSE"))


def test_the_safetensors_library_opens_every_shard(tmp_path: Path) -> None:
    path, _ = write_tiny_gguf(tmp_path)
    manifest = pack(path, tmp_path / "out")
    for ref in manifest.shards:
        with safe_open(tmp_path / "out" / manifest.name / ref.file, "numpy") as file:
            assert file.metadata()["role"] == ref.role
            assert sum(file.get_tensor(name).nbytes for name in file.keys()) < ref.size  # noqa: SIM118


def test_the_same_input_gives_the_same_bytes_in_every_process(tiny: Path, tmp_path: Path) -> None:
    for out, seed in (("one", "1"), ("two", "2")):
        script = (
            "from pathlib import Path; from mesh.publishing import pack_release; from mesh.weights.trust.signing import *;"
            f"pack_release(Path({str(tiny)!r}), Path({str(tmp_path / out)!r}), 'apache-2.0', None,"
            " PrivateKey.from_seed(bytes(32)))"
        )
        environment = {"PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": "1700000000", "PATH": ""}
        subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert everything_in(tmp_path / "one") == everything_in(tmp_path / "two")
    assert Release.open(tmp_path / "one", TRUST).manifest.created == "2023-11-14T22:13:20Z"


def test_equal_layers_have_equal_addresses_in_every_release(tiny: Path, tmp_path: Path) -> None:
    one = pack(tiny, tmp_path / "one", name="first", created="2026-01-01T00:00:00Z")
    two = pack(
        tiny, tmp_path / "two", name="second", created="2027-01-01T00:00:00Z", key=PrivateKey.generate()
    )
    assert one.shards == two.shards
    assert one.release_id != two.release_id
    other_license = pack(tiny, tmp_path / "three", license_id="LicenseRef-x", license_text=b"other")
    assert not {ref.root for ref in one.shards} & {ref.root for ref in other_license.shards}


def test_progress_never_goes_back_and_ends_at_the_total(tiny: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pack(tiny, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert len({total for _, total in seen}) == 1
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"license_id": "MIT"}, UsageError, "--license-file"),
        ({"license_id": "MIT", "license_text": b" \n"}, UsageError, "empty"),
        ({"notice": b" "}, UsageError, "NOTICE is empty"),
        ({"license_id": "two words", "license_text": b"x"}, UsageError, "license id"),
        ({"name": "a/b"}, UsageError, "name"),
        ({"name": ".."}, UsageError, "name"),
        ({"created": "yesterday"}, UsageError, "created"),
    ],
)
def test_a_wrong_wish_is_refused_before_anything_is_written(
    tiny: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=says):
        pack(tiny, tmp_path / "out", **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_license_beside_the_weights_is_taken_and_must_be_accepted(tiny: Path, tmp_path: Path) -> None:
    (tiny / "LICENSE").write_bytes(b"be good")
    license_ = pack(tiny, tmp_path / "out", license_id="LicenseRef-good").license
    assert license_.text_digest == hashlib.sha256(b"be good").hexdigest()
    assert license_.acceptance_required


def test_notice_and_use_policy_beside_the_weights_go_into_the_aux_shard(tiny: Path, tmp_path: Path) -> None:
    (tiny / "NOTICE").write_bytes(b"made by others")
    (tiny / "USE_POLICY.md").write_bytes(b"no harm")
    for out, options, notice in (("a", {}, b"made by others"), ("b", {"notice": b"given"}, b"given")):
        manifest = pack(tiny, tmp_path / out, **options)
        ref = manifest.shard("aux")
        aux = read_shard(Release.open(tmp_path / out, TRUST).shard_path(ref), ref)
        assert bytes(aux.bytes_of("NOTICE")) == notice
        assert bytes(aux.bytes_of("USE_POLICY")) == b"no harm"
        assert manifest.license.notice_digest == hashlib.sha256(notice).hexdigest()
        assert manifest.license.policy_digest == hashlib.sha256(b"no harm").hexdigest()
    plain = pack(write_tiny_checkpoint(tmp_path / "plain"), tmp_path / "c").license
    assert (plain.notice_digest, plain.policy_digest) == (None, None)


def test_an_existing_release_is_not_overwritten(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    pack(tiny, tmp_path / "out")  # an empty directory is fine
    before = everything_in(tmp_path / "out")
    with pytest.raises(UsageError, match="not an empty directory"):
        pack(tiny, tmp_path / "out")
    assert everything_in(tmp_path / "out") == before
    with pytest.raises(NotFound, match="make it"):
        pack(tiny, tmp_path / "no" / "where")


def test_a_model_that_cannot_run_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, "mlp_bias": True}))
    with pytest.raises(CheckpointUnsupported):
        pack(tiny, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tiny]


def test_a_disk_that_is_too_small_is_noticed_before_writing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("mesh.publishing.shutil.disk_usage", lambda path: usage)
    with pytest.raises(NotEnoughDisk, match="1000 B free"):
        pack(tiny, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tiny]


def test_creation_time_is_source_date_epoch_or_now() -> None:
    assert creation_time({}, 0.9) == "1970-01-01T00:00:00Z"
    assert creation_time({"SOURCE_DATE_EPOCH": "1700000000"}, 0.0) == "2023-11-14T22:13:20Z"
    for wrong in ("", "x", "-1", "1.5", "9" * 12):
        with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
            creation_time({"SOURCE_DATE_EPOCH": wrong}, 0.0)


def test_a_shard_of_another_license_is_refused(tiny: Path, tmp_path: Path) -> None:
    """Swapped in by a publisher who signs what does not belong together."""
    from dataclasses import replace

    from mesh.weights.trust.manifest import LicenseRef

    manifest = pack(tiny, tmp_path / "out")
    release = Release.open(tmp_path / "out", TRUST)
    other = replace(release, manifest=replace(manifest, license=LicenseRef("Apache-2.0", "0" * 64, False)))
    problems = problems_of(other)
    assert len(problems) == len(manifest.shards)
    assert all(
        isinstance(problem, IntegrityError) and "license" in str(problem) for problem in problems.values()
    )


@pytest.mark.real_model
def test_the_real_model_packs_and_verifies(real_gguf: Path, tmp_path: Path) -> None:
    manifest = pack(real_gguf, tmp_path / "out")
    assert (len(manifest.shards), manifest.quantization) == (33, "Q4_1")
    assert problems_of(Release.open(tmp_path / "out", TRUST)) == {}
    assert manifest.total_bytes < 1.01 * real_gguf.stat().st_size


def test_hybrid_release_is_what_libtorrent_would_make_and_names_its_web_seed(
    tiny: Path, tmp_path: Path
) -> None:
    manifest = pack(tiny, tmp_path / "out", hybrid=True, web_seeds=["https://seed.example/"])
    torrent = (tmp_path / "out" / "release.torrent").read_bytes()
    creator = lt.create_torrent(
        lt.list_files(str(tmp_path / "out" / manifest.torrent.name)), manifest.torrent.piece_length, 0
    )
    lt.set_piece_hashes(creator, str(tmp_path / "out"))
    expected = lt.load_torrent_buffer(lt.bencode(creator.generate())).info_hashes

    assert check_torrent(torrent, manifest) == ("https://seed.example/",)
    assert manifest.torrent.infohash == str(expected.v2)
    assert manifest.torrent.hybrid is not None
    assert manifest.torrent.hybrid.infohash_v1 == str(expected.v1)


def test_open_release_is_private_only_when_that_is_asked_for(tiny: Path, tmp_path: Path) -> None:
    assert pack(tiny, tmp_path / "out", private=True).torrent.private
