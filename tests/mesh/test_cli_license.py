"""``mesh license`` as a volunteer meets it: the text before the word, and no word that was not given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.cli.main import main
from mesh.weights.trust.acceptance import open_acceptance
from tests.support.releases import PackedRelease, pack_tiny

Run = Callable[..., tuple[int, str, str]]
TEXT = b"Use it kindly."


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedRelease:
    directory = tmp_path_factory.mktemp("release")
    return pack_tiny(directory, license_id="LicenseRef-kind", license_text=TEXT, num_layers=1)


@pytest.fixture
def mesh(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))

    def call(*args: object) -> tuple[int, str, str]:
        code = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_show_prints_what_the_publisher_signed(packed: PackedRelease, mesh: Run) -> None:
    code, out, err = mesh("license", "show", packed.directory, "--trust", packed.trust_file)
    assert code == 0
    assert out == "---- LICENSE of tiny: LicenseRef-kind ----\nUse it kindly.\n"
    assert "has to be accepted" in err
    code, out, _ = mesh("license", "show", packed.directory, "--trust", packed.trust_file, "--json")
    assert json.loads(out)["texts"] == {"LICENSE": "Use it kindly."}


def test_accept_shows_the_text_and_records_only_the_id_that_was_read(
    packed: PackedRelease, mesh: Run, tmp_path: Path
) -> None:
    where = (packed.directory, "--trust", packed.trust_file, "--data", tmp_path / "node")
    for given in ((), ("--accept-license", "LicenseRef-other")):
        code, _, err = mesh("license", "accept", *where, *given)
        assert code == 5
        assert "Use it kindly." in err
        assert not (tmp_path / "node").exists()
    code, out, err = mesh("license", "accept", *where, "--accept-license", "LicenseRef-kind", "--json")
    assert code == 0
    assert "Use it kindly." in err
    record = open_acceptance(json.dumps(json.loads(out)["record"]).encode())
    record.check_for(packed.manifest, json.loads(out)["node_id"])

    code, out, _ = mesh("license", "list", "--data", tmp_path / "node", "--json")
    (row,) = json.loads(out)["accepted"]
    assert (code, row["license"], row["node_id"]) == (0, "LicenseRef-kind", record.node_id)


def test_who_names_no_release_is_told_how(mesh: Run) -> None:
    code, _, err = mesh("license", "show")
    assert code == 2
    assert "--coordinator HOST:PORT" in err


def test_listing_makes_no_identity(mesh: Run, tmp_path: Path) -> None:
    assert mesh("license", "list", "--data", tmp_path / "nobody")[0] == 0
    assert not (tmp_path / "nobody").exists()
