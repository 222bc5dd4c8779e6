"""A directory of files goes from its publisher to a stranger by the commands alone: pack, seed, pull, verify."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mesh.cli.main import main
from tests.support.static_server import static_server

FILES = {
    "README.md": b"# a data set\n",
    "arxiv/_SUCCESS": b"",
    "arxiv/arxiv_00.jsonl.zst": bytes(range(256)) * 20_000,
    "arxiv/again.jsonl.zst": bytes(range(256)) * 20_000,
    "wikipedia/de/ä 1.jsonl": b"{}\n",
    "zuletzt/leer": b"",
}
MESH = [sys.executable, "-c", "import sys; from mesh.cli.main import main; sys.exit(main())"]


@pytest.fixture
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Its release; the publisher's key lies beside it."""
    for name, data in FILES.items():
        path = tmp_path / "red pajama" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert main(["keys", "new", "--out", str(tmp_path)]) == 0
    key, out = str(tmp_path / "publisher.key"), tmp_path / "release"
    source = [
        str(tmp_path / "red pajama"),
        "--as",
        "files",
        "--license",
        "apache-2.0",
        *getattr(request, "param", []),
    ]
    assert main(["pack", *source, "--key", key, "--out", str(out)]) == 0
    return out


@contextmanager
def seeder(release: Path, trust: Path) -> Iterator[dict[str, str]]:
    command = [*MESH, "seed", str(release), "--trust", str(trust), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()


def files_in(directory: Path) -> dict[str, bytes]:
    """What was published; the licence is a file of the release's own."""
    found = {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }
    found.pop("release-aux.safetensors")
    return found


def test_a_peer_without_a_coordinator_gives_it_to_a_directory_and_to_a_store(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trust, store, out = tmp_path / "publisher.pub", tmp_path / "store", tmp_path / "pulled"
    store.mkdir()
    with seeder(published, trust) as seeding:
        pull = ["pull", seeding["magnet"], "--peer", seeding["listen"], "--no-dht", "--trust", str(trust)]
        assert main([*pull, "--out", str(out)]) == 0
        assert main([*pull, "--store", str(store)]) == 0
    assert files_in(out / "red-pajama") == FILES
    assert main(["verify", str(out), "--trust", str(trust)]) == 0
    capsys.readouterr()
    held = ["verify", "red-pajama", "--store", str(store), "--complete", "--trust", str(trust), "--json"]
    assert main(held) == 0
    shards = json.loads(capsys.readouterr().out)["shards"]
    assert {shard["file"] for shard in shards} == {*FILES, "release-aux.safetensors"}
    # What was pulled is as good a source as what was packed.
    again = tmp_path / "again"
    with seeder(out, trust) as seeding:
        pull = ["pull", seeding["magnet"], "--peer", seeding["listen"], "--no-dht", "--trust", str(trust)]
        assert main([*pull, "--out", str(again)]) == 0
    assert files_in(again / "red-pajama") == FILES


@pytest.mark.parametrize("published", [["--hybrid"]], indirect=True, ids=["hybrid"])
def test_a_static_server_gives_it_to_whoever_knows_its_address(published: Path, tmp_path: Path) -> None:
    trust, out = str(tmp_path / "publisher.pub"), tmp_path / "pulled"
    with static_server(published) as bucket:
        assert main(["pull", bucket.url, "--trust", trust, "--out", str(out), "--stall", "10"]) == 0
    assert files_in(out / "red-pajama") == FILES
    assert main(["verify", str(out), "--trust", trust]) == 0
    (out / "red-pajama/zuletzt/leer").write_bytes(b"no longer")
    assert main(["verify", str(out), "--trust", trust]) == 4
