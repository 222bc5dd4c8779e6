"""``mesh verify --catalog``: the publisher is one of today, the list of what was taken back is fresh, and what it says counts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.cli.main import main
from mesh.layers import LayerRange
from mesh.publishing import pack_release
from mesh.weights.releases.holdings import Holdings
from mesh.weights.releases.release import Release
from mesh.weights.releases.store import ShardStore
from mesh.weights.trust.acceptance_book import AcceptanceBook
from mesh.weights.trust.manifest import Manifest
from mesh.weights.trust.revocation import Kind, Reason, Revocation, RevocationList, timestamp
from mesh.weights.trust.signing import PrivateKey, TrustRoot, sign_manifest
from tests.support.catalogs import CatalogWorld, make_world
from tests.support.tiny_models import write_tiny_checkpoint

DAY = 86400.0
LICENSE = "LicenseRef-Tiny"
Run = Callable[..., tuple[int, str, str]]


@dataclass
class World:
    """A catalog that lists a release under a licence of its own, and somebody who verifies it."""

    catalog: CatalogWorld
    release: Release
    root: Path

    @property
    def manifest(self) -> Manifest:
        return self.release.manifest

    def revoke(self, *targets: tuple[Kind, str], case_ref: str = "", days_ago: float = 0.0) -> None:
        now = time.time() - days_ago * DAY
        entries = [
            Revocation(kind, id_, Reason.DMCA, timestamp(now - DAY), case_ref=case_ref)
            for kind, id_ in targets
        ]
        listed = RevocationList.first(now).adding(entries, now)
        keys = self.catalog.keys
        outcome = self.catalog.catalog.set_revocations(
            listed.to_bytes(), listed.expires_at, [keys.takedown, keys.online]
        )
        assert not outcome.missing


def make(tmp_path: Path, *, days_ago: float = 0.0) -> World:
    catalog = make_world(tmp_path, days_ago=days_ago)
    source = write_tiny_checkpoint(tmp_path / "checkpoint", num_layers=2)
    key, out = catalog.keys.acme, tmp_path / "release"
    manifest = pack_release(source, out, LICENSE, b"be kind", key, name="kind")
    catalog.publish(manifest)
    (tmp_path / "root.json").write_bytes(catalog.pinned)
    return World(catalog, Release.open(out, TrustRoot.of(key.public)), tmp_path / "root.json")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make(tmp_path)


@pytest.fixture
def mesh(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user"))
    for name in ("MESH_STORE", "MESH_TRUST", "MESH_CATALOG"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return run


def verify(mesh: Run, world: World, *args: str | Path) -> tuple[int, dict[str, tuple[str, str]], str]:
    """Exit code, what each step came to, stderr."""
    where = ["--trust", world.root, "--catalog", world.catalog.directory, "--json"]
    code, said, err = mesh("verify", *(args or (world.release.directory,)), *where)
    steps = json.loads(said)["steps"] if said else []
    return code, {step["name"]: (step["outcome"], step["detail"]) for step in steps}, err


def test_listed_release_says_who_vouches_for_it_and_until_when(mesh: Run, world: World) -> None:
    world.revoke((Kind.RELEASE, "f" * 64))
    code, steps, err = verify(mesh, world)
    assert (code, err) == (0, "")
    assert (
        f"signed by {world.catalog.keys.acme.public.key_id}, publisher acme of catalog root 1"
        in steps["trust"][1]
    )
    assert steps["revocation"][0] == "passed"
    assert "list 2 of" in steps["revocation"][1]


def test_catalog_without_a_list_has_revoked_nothing(mesh: Run, world: World) -> None:
    assert verify(mesh, world)[1]["revocation"] == ("passed", "the catalog has revoked nothing yet")


@pytest.mark.parametrize("kind", ["release", "shard", "key", "license", "license text", "infohash"])
def test_what_was_revoked_fails_by_its_entry(mesh: Run, world: World, kind: str) -> None:
    targets = {
        "release": (Kind.RELEASE, world.manifest.release_id),
        "shard": (Kind.SHARD, world.manifest.shard("layer", 1).root),
        "key": (Kind.KEY, world.catalog.keys.acme.public.key_id),
        "license": (Kind.LICENSE, LICENSE),
        "license text": (Kind.LICENSE, world.manifest.license.text_digest),
        "infohash": (Kind.INFOHASH, world.manifest.torrent.infohash),
    }
    named, id_ = targets[kind]
    world.revoke((named, id_), (Kind.SHARD, "e" * 64), case_ref="ticket 7")
    code, steps, err = verify(mesh, world)
    assert code == 5
    assert steps["revocation"][0] == "failed"
    assert f"{named} {id_} (dmca, case ticket 7)" in err
    assert steps["signature"][0] == "passed"


def test_revoked_shard_matters_to_who_holds_it(mesh: Run, world: World, tmp_path: Path) -> None:
    """A node of the other layer is not told to stop."""
    release, store = world.release, Holdings(ShardStore(tmp_path / "store"))
    refs = world.manifest.shards_for(LayerRange(0, 1))
    with store.hold(release.envelope, release.torrent, world.manifest, refs):
        for ref in refs:
            store.store.adopt(release.shard_path(ref), ref)
    world.revoke((Kind.SHARD, world.manifest.shard("layer", 1).root))
    assert verify(mesh, world, "kind", "--store", tmp_path / "store")[0] == 0
    world.revoke((Kind.SHARD, world.manifest.shard("layer", 0).root))
    assert verify(mesh, world, "kind", "--store", tmp_path / "store")[0] == 5


def test_stale_list_permits_nothing(mesh: Run, tmp_path: Path) -> None:
    world = make(tmp_path, days_ago=8)
    world.revoke((Kind.RELEASE, "f" * 64), days_ago=8)
    world.catalog.clock.advance(8 * DAY)
    world.catalog.catalog.refresh([world.catalog.keys.online])
    code, steps, err = verify(mesh, world)
    assert code == 5
    assert steps["revocation"][0] == "failed"
    assert "mesh revoke --refresh" in err


def test_list_that_the_takedown_role_did_not_sign_is_refused(mesh: Run, world: World) -> None:
    world.revoke((Kind.RELEASE, world.manifest.release_id))
    world.catalog.forge("takedown", [world.catalog.keys.acme], lambda signed: signed.targets.clear())
    newest = max(
        (world.catalog.directory / "metadata").glob("*.takedown.json"),
        key=lambda path: int(path.name.split(".")[0]),
    )
    before = newest.with_name(f"{int(newest.name.split('.')[0]) - 1}.takedown.json")
    before.write_bytes(newest.read_bytes())
    code, steps, _ = verify(mesh, world)
    assert code == 4
    assert steps["revocation"][0] == "failed"


def test_recorded_acceptance_is_shown_and_its_absence_too(mesh: Run, world: World, tmp_path: Path) -> None:
    assert "no acceptance is on record here" in verify(mesh, world)[1]["licence"][1]
    node = PrivateKey.generate()
    AcceptanceBook(tmp_path / "user" / "llama-mesh" / "node").record_for(world.manifest, node, 1e9)
    licence = verify(mesh, world)[1]["licence"]
    assert licence[0] == "passed"
    assert f"{LICENSE}, accepted 2001-09-09T01:46:40Z by {node.public.key_id}" in licence[1]


def test_release_that_was_signed_anew_is_verified_under_the_key_of_today(mesh: Run, world: World) -> None:
    """The key was stolen, revoked and replaced; who holds the bytes holds what is published, under another signature."""
    keys, thief = world.catalog.keys, world.catalog.keys.acme
    new = PrivateKey.generate()
    catalog = world.catalog.catalog
    rotated = catalog.rotate(
        "publisher-acme",
        [keys.targets, keys.online, new],
        add=[new.public],
        remove=[thief.public.key_id],
    )
    assert not rotated.missing
    world.revoke((Kind.KEY, thief.public.key_id))
    code, _, err = verify(mesh, world)
    assert code == 4  # listed, but signed by nobody who counts
    assert "mesh catalog resign" in err
    assert not catalog.add_release("acme", sign_manifest(world.manifest, new), [new, keys.online]).missing
    code, steps, err = verify(mesh, world)
    assert (code, err) == (0, "")
    assert f"signed by {new.public.key_id}" in steps["trust"][1]
