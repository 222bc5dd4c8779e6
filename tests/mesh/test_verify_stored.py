"""``mesh verify RELEASE``: what a store holds of a release, from its blobs; a part of it is no failure unless it was to be whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.cli.main import main
from mesh.layers import LayerRange
from mesh.weights.releases.holdings import Holdings
from mesh.weights.releases.store import ShardStore
from tests.support.releases import PackedRelease, pack_tiny

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedRelease:
    return pack_tiny(tmp_path_factory.mktemp("packed"), num_layers=3)


@pytest.fixture
def data(packed: PackedRelease, tmp_path: Path) -> Path:
    """A node's data directory, which holds what a stage of layers 0 and 1 needs."""
    release = packed.open()
    refs = packed.manifest.shards_for(LayerRange(0, 2))
    holdings = Holdings(ShardStore(tmp_path / "node" / "shards"))
    with holdings.hold(release.envelope, release.torrent, packed.manifest, refs):
        for ref in refs:
            holdings.store.adopt(release.shard_path(ref), ref)
    return tmp_path / "node"


@pytest.fixture
def mesh(
    packed: PackedRelease, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("MESH_STORE", raising=False)
    monkeypatch.setenv("MESH_TRUST", str(packed.trust_file))

    def run(*args: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return run


def blob_of(data: Path, packed: PackedRelease, role: str, layer: int | None = None) -> Path:
    return data / "shards" / "blobs" / packed.manifest.shard(role, layer).root


@pytest.mark.parametrize("where", ["node", "node/shards"])
def test_part_of_a_release_is_verified_by_name(mesh: Run, data: Path, where: str) -> None:
    code, said, err = mesh("verify", "tiny", "--store", data.parent / where)
    assert (code, err) == (0, "")
    lines = [re.split(" {2,}", line) for line in said.splitlines() if ".safetensors" in line]
    rows = {file: state for state, file, *_ in lines}
    assert rows == {
        "embed.safetensors": "ok",
        "layer-00000.safetensors": "ok",
        "layer-00001.safetensors": "ok",
        "layer-00002.safetensors": "not held",
        "head.safetensors": "not held",
        "aux.safetensors": "not held",
    }
    assert "verified tiny: the 3 of 6 shards that are held" in said


def test_a_prefix_of_the_id_names_a_release(mesh: Run, data: Path, packed: PackedRelease) -> None:
    code, said, _ = mesh("verify", packed.manifest.release_id[:12], "--store", data, "--deep", "--json")
    assert code == 0
    found = json.loads(said)
    assert found["ok"]
    assert [(shard["held"], shard["ok"]) for shard in found["shards"]] == [(True, True)] * 3 + [
        (False, None)
    ] * 3
    assert found["held_bytes"] == sum(shard["size"] for shard in found["shards"][:3])
    steps = {step["name"]: step for step in found["steps"]}
    assert steps["licence"]["outcome"] == "not checked"
    assert steps["contents"]["detail"].startswith("of what is held, tensors fit the model")


def test_what_is_not_held_is_missing_from_what_was_to_be_complete(mesh: Run, data: Path) -> None:
    code, _, err = mesh("verify", "tiny", "--store", data, "--complete")
    assert code == 3
    assert (
        "3 of 6 shards are missing: layer-00002.safetensors, head.safetensors, aux.safetensors; fetch them"
        in err
    )


@pytest.mark.parametrize("how", ["rotten", "cut", "symlink"])
def test_spoiled_blob_is_named(
    mesh: Run, data: Path, packed: PackedRelease, tmp_path: Path, how: str
) -> None:
    blob = blob_of(data, packed, "layer", 1)
    honest = blob.read_bytes()
    blob.unlink()
    if how == "symlink":
        (tmp_path / "elsewhere").write_bytes(honest)
        blob.symlink_to(tmp_path / "elsewhere")
    else:
        blob.write_bytes(honest[:-1] + (b"" if how == "cut" else bytes((honest[-1] ^ 1,))))
    code, said, err = mesh("verify", "tiny", "--store", data)
    assert code == 4
    assert "1 of 6 shards are bad: layer-00001.safetensors" in err
    assert "BAD" in said


def test_a_release_of_which_nothing_is_held_is_not_verified(mesh: Run, data: Path) -> None:
    for blob in (data / "shards" / "blobs").iterdir():
        blob.unlink()
    assert mesh("verify", "tiny", "--store", data)[0] == 3


def test_manifest_of_another_key_is_refused_in_a_store_too(mesh: Run, data: Path, tmp_path: Path) -> None:
    assert mesh("keys", "new", "stranger")[0] == 0
    stranger = tmp_path / "user" / "llama-mesh" / "keys" / "stranger.pub"
    assert mesh("verify", "tiny", "--store", data, "--trust", stranger)[0] == 4


def test_unknown_name_says_where_it_was_looked_for(mesh: Run, data: Path, tmp_path: Path) -> None:
    code, _, err = mesh("verify", "tinny")
    assert code == 3
    assert "no such directory" in err
    assert not (tmp_path / "user" / "llama-mesh" / "store").exists()
    code, _, err = mesh("verify", "tinny", "--store", data)
    assert code == 3
    assert "has no release 'tinny'" in err


def test_verifying_is_no_use_and_nothing_is_removed_meanwhile(data: Path, packed: PackedRelease) -> None:
    holdings = Holdings(ShardStore(data / "shards"))
    before = holdings.find("tiny")
    with holdings.using(before):
        assert holdings.find("tiny").is_busy
    after = holdings.find("tiny")
    assert (after.is_busy, after.last_used) == (False, before.last_used)


def test_checkpoints_directory_of_the_same_name_is_not_taken_for_the_release(
    mesh: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    code, _, err = mesh("verify", "tiny")
    assert code == 3
    assert "manifest.dsse.json does not exist" in err
    (tmp_path / "user" / "llama-mesh").mkdir(parents=True, exist_ok=True)
    (data / "shards").rename(tmp_path / "user" / "llama-mesh" / "store")
    assert mesh("verify", "tiny")[0] == 0
