"""``mesh catalog`` and ``mesh publish`` as an operator and their colleagues meet them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.cli.main import main
from mesh.publishing import pack_release
from mesh.weights.trust.keyring import find_key, keys_dir
from tests.support.static_server import static_server
from tests.support.tiny_models import write_tiny_checkpoint

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _own_key_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in ("MESH_TRUST", "MESH_KEY", "MESH_CATALOG", "SOURCE_DATE_EPOCH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mesh(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*args: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def catalog(tmp_path: Path, mesh: Run) -> Path:
    """Two root keys, both needed; one for targets; a publisher named acme."""
    for name in ("root-a", "root-b", "targets", "acme"):
        assert mesh("keys", "new", name)[0] == 0
    directory = tmp_path / "catalog"
    code, out, err = mesh(
        "catalog", "init", directory, "--root-key", "root-a", "--root-key", "root-b", "--threshold", "2",
        "--targets-key", "targets",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "published  takedown 1, targets 1, root 1" in out
    assert mesh("catalog", "publisher", "add", directory, "acme", "--publisher-key", "acme")[0] == 0
    return directory


@pytest.fixture
def release(tmp_path: Path, catalog: Path) -> Path:
    source = write_tiny_checkpoint(tmp_path / "tiny", num_layers=2)
    pack_release(source, tmp_path / "release", "apache-2.0", None, find_key("acme"))
    return tmp_path / "release"


def test_release_is_listed_and_verified_through_the_catalogs_root(
    catalog: Path, release: Path, mesh: Run
) -> None:
    root = catalog / "metadata/1.root.json"
    code, _, err = mesh("verify", release, "--trust", root)
    assert code == 2
    assert "--catalog" in err
    code, _, err = mesh("verify", release, "--trust", root, "--catalog", catalog)
    assert code == 3
    assert "not in the catalog" in err
    assert mesh("catalog", "add", catalog, release, "--publisher", "acme")[0] == 0
    for command in ("verify", "show"):
        assert mesh(command, release, "--trust", root, "--catalog", catalog)[0] == 0
    assert mesh("catalog", "remove", catalog, "acme/tiny")[0] == 0
    assert mesh("verify", release, "--trust", root, "--catalog", catalog)[0] == 3
    assert mesh("verify", release, "--catalog", catalog)[0] == 2


def test_any_web_server_can_hand_out_the_catalog(catalog: Path, release: Path, mesh: Run) -> None:
    mesh("catalog", "add", catalog, release, "--publisher", "acme")
    root = catalog / "metadata/1.root.json"
    with static_server(catalog) as server:
        code, _, err = mesh("show", release, "--trust", root, "--catalog", server.url)
    assert (code, err) == (0, "")
    code, _, err = mesh("show", release, "--trust", root, "--catalog", server.url)
    assert code == 6
    assert "does not answer" in err


def test_two_people_sign_one_after_the_other(catalog: Path, mesh: Run, tmp_path: Path) -> None:
    """A rotation of the root that one of them starts is in force only when the other has signed as well."""
    away = tmp_path / "stick"
    away.mkdir()
    (keys_dir() / "root-b.key").rename(away / "root-b.key")
    mesh("keys", "new", "root-c")
    code, out, _ = mesh("catalog", "rotate", catalog, "root", "--add", "root-c", "--json")
    change = json.loads(out)
    assert code == 0
    assert (change["published"], [missing["role"] for missing in change["missing"]]) == ([], ["root"])
    assert not (catalog / "metadata/2.root.json").exists()
    assert "waiting    root 2: for 1 more signature" in mesh("catalog", "show", catalog)[1]
    code, out, _ = mesh("catalog", "sign", catalog, "--key", away / "root-b.key", "--key", "catalog-online")
    assert (code, out.splitlines()[0]) == (0, "published  root 2")
    assert "waiting" not in mesh("catalog", "show", catalog)[1]


def test_manifest_is_signed_anew_under_a_rotated_key(catalog: Path, release: Path, mesh: Run) -> None:
    mesh("catalog", "add", catalog, release, "--publisher", "acme")
    before = json.loads(mesh("show", release, "--json")[1])
    old = json.loads(mesh("keys", "list", "--json")[1])["keys"]
    fingerprint = next(key["key_id"] for key in old if key["name"] == "acme")
    mesh("keys", "new", "acme-2")
    assert (
        mesh("catalog", "rotate", catalog, "publisher-acme", "--add", "acme-2", "--remove", fingerprint)[0]
        == 0
    )
    root = catalog / "metadata/1.root.json"
    assert mesh("show", release, "--trust", root, "--catalog", catalog)[0] == 4
    code, _, err = mesh(
        "catalog", "resign", catalog, release, "--publisher", "acme", "--manifest-key", "acme-2"
    )
    assert (code, err) == (0, "")
    code, out, _ = mesh("show", release, "--trust", root, "--catalog", catalog, "--json")
    assert code == 0
    after = json.loads(out)
    assert after["release_id"] == before["release_id"]
    assert after["signer"] != before["signer"]


def test_publish_packs_signs_and_lists_in_one_go(catalog: Path, mesh: Run, tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "small", num_layers=2)
    out = tmp_path / "published"
    args = ("publish", source, "--out", out, "--license", "apache-2.0", "--key", "acme", "--no-seed")
    code, _, err = mesh(*args, "--catalog", catalog, "--publisher", "nobody")
    assert code == 3
    assert "no publisher 'nobody'" in err
    assert not out.exists()  # found before anything was packed
    code, _, err = mesh(*args, "--catalog", catalog, "--publisher", "acme")
    assert code == 0, err
    assert "models/acme/small/manifest.dsse.json" in mesh("catalog", "show", catalog)[1]


def test_show_tells_roles_keys_thresholds_and_expiry(catalog: Path, mesh: Run) -> None:
    code, out, _ = mesh("catalog", "show", catalog)
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines() if line.split()[:1]}
    assert "2 of 2" in rows["root"]
    assert "365 days" in rows["root"]
    assert "48 h" in rows["timestamp"]
    assert "nothing published" in rows["publisher-acme"]
    status = json.loads(mesh("catalog", "show", catalog, "--json")[1])
    assert {row["role"]: row["threshold"] for row in status["roles"]}["root"] == 2
    assert status["missing"] == []


def test_renew_refresh_and_discard_say_what_they_did(catalog: Path, mesh: Run) -> None:
    assert "published  targets 3" in mesh("catalog", "renew", catalog, "targets")[1]
    assert mesh("catalog", "refresh", catalog)[0] == 0
    assert mesh("catalog", "publisher", "remove", catalog, "acme", "--key", "acme")[0] == 0
    assert mesh("catalog", "discard", catalog)[1] == "discarded targets\n"
    assert mesh("catalog", "discard", catalog)[1] == "nothing was waiting\n"


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("show", "nowhere"), 3),
        (("rotate", "{catalog}", "root"), 2),
        (("rotate", "{catalog}", "nothing", "--threshold", "1"), 3),
        (("rotate", "{catalog}", "root", "--threshold", "9"), 2),
        (("remove", "{catalog}", "tiny"), 2),
        (("remove", "{catalog}", "acme/tiny"), 3),
        (("publisher", "add", "{catalog}", "Up", "--publisher-key", "acme"), 2),
        (("publisher", "add", "{catalog}", "beta", "--publisher-key", "unknown"), 3),
        (("init", "{catalog}", "--root-key", "root-a"), 2),
        (("add", "{catalog}", "nowhere", "--publisher", "acme"), 3),
    ],
)
def test_mistake_is_one_line_and_changes_nothing(
    catalog: Path, mesh: Run, args: tuple[str, ...], code: int
) -> None:
    before = mesh("catalog", "show", catalog, "--json")[1]
    got, out, err = mesh("catalog", *(arg.format(catalog=catalog) for arg in args))
    assert (got, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("mesh: error: ")
    assert mesh("catalog", "show", catalog, "--json")[1] == before


def test_online_key_is_made_but_never_believed_as_a_publishers(catalog: Path, mesh: Run) -> None:
    assert (keys_dir() / "catalog-online.key").stat().st_mode & 0o777 == 0o600
    assert not (keys_dir() / "catalog-online.pub").exists()
