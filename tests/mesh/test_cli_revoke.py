"""``mesh revoke`` as an operator meets it: what it hits, what is missing, and nothing changed by a mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.cli.main import main
from tests.support.catalogs import CatalogWorld, make_world, named

Run = Callable[..., tuple[int, str, str]]
MANIFEST = named("tiny")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogWorld:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    made = make_world(tmp_path)
    keys = tmp_path / "home" / "llama-mesh" / "keys"
    keys.mkdir(parents=True)
    made.keys.takedown.save(keys / "takedown.key")
    made.keys.online.save(keys / "online.key")
    return made


@pytest.fixture
def revoke(capsys: pytest.CaptureFixture[str], world: CatalogWorld) -> Run:
    def call(*args: object) -> tuple[int, str, str]:
        code = main(["revoke", "--catalog", str(world.directory), *map(str, args)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def read(out: str) -> dict[str, Any]:
    return dict(json.loads(out))


def test_it_says_what_it_hits_and_lifting_takes_it_back(revoke: Run, world: CatalogWorld) -> None:
    assert read(revoke("--json")[1])["version"] == 0
    shard = MANIFEST.shard("layer", 1)
    code, out, _ = revoke("--shard", shard.root, "--reason", "dmca", "--case", "case 7", "--json")
    told = read(out)
    assert (code, told["hits"][0]["shards"]) == (0, [shard.file])
    found = world.view().revocation_list()
    assert found is not None
    assert told["version"] == found.version
    code, out, _ = revoke("--refresh", "--json")
    assert (code, read(out)["version"], len(read(out)["entries"])) == (0, found.version + 1, 1)
    code, out, _ = revoke("--shard", shard.root, "--lift", "--json")
    assert (code, read(out)["entries"], read(out)["hits"]) == (0, [], [])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--lift"], "--lift needs what to lift"),
        (["--release", "0" * 64, "--lift"], "nothing is revoked"),
        (["--release", "tiny"], "expected [0-9a-f]{64}"),
        (["--key", "0" * 64], "ed25519:"),
        (["--release", "0" * 64, "--reason", "spite"], "'spite' is not a valid Reason"),
        (["--release", "0" * 64, "--effective", "tomorrow"], "RFC 3339"),
        (["--release", "0" * 64, "--refresh"], "--refresh changes nothing else"),
    ],
)
def test_a_mistake_changes_nothing(revoke: Run, world: CatalogWorld, args: list[str], words: str) -> None:
    code, _, err = revoke(*args)
    assert code in (2, 3)
    assert words in err
    assert world.view().revocation_list() is None


def test_without_the_takedown_key_it_is_staged_and_says_so(
    revoke: Run, world: CatalogWorld, tmp_path: Path
) -> None:
    world.keys.acme.save(tmp_path / "acme.key")
    key = ("--sign-with", tmp_path / "acme.key")
    code, _, err = revoke("--release", MANIFEST.release_id, *key)
    assert code == 75
    assert "binds nobody yet" in err
    assert world.view().revocation_list() is None
    code, _, err = revoke("--key", world.keys.acme.public.key_id)  # or the first would be forgotten
    assert code == 2
    assert "waits for signatures" in err
