"""Revocation by real services: at the door, by push within a heartbeat, and never undone by somebody's silence."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mesh.demo.local_mesh import node_command
from mesh.demo.processes import children, command
from mesh.demo.splitting import Share
from mesh.errors import CatalogExpired, CatalogRefused, LicenseRefused, Temporary
from mesh.weights.trust.catalog.placing import remember_place
from mesh.weights.trust.catalog.plan import RoleKeys
from mesh.weights.trust.catalog.repository import Catalog
from mesh.weights.trust.catalog.sources import directory_source
from mesh.weights.trust.revocation import (
    Kind,
    Reason,
    ReleaseRevoked,
    Revocation,
    RevocationList,
    RevocationsStale,
    timestamp,
)
from node.catalog import NodeCatalog
from tests.integration.test_catalog_over_grpc import Mesh, mesh  # noqa: F401 - a fixture
from tests.integration.test_refusals import START, refused, run
from tests.support.catalogs import CatalogWorld, Keys, make_world, named, plan_of
from tests.support.releases import pack_tiny

MANIFEST = named("tiny")
DAY = 24 * 3600.0


def publish(world: CatalogWorld, *entries: Revocation, after: RevocationList | None = None) -> RevocationList:
    now = world.clock.wall()
    revocations = (after or RevocationList.first(now)).adding(entries, now)
    signers = [world.keys.takedown, world.keys.online]
    outcome = world.catalog.set_revocations(revocations.to_bytes(), revocations.expires_at, signers)
    assert not outcome.missing
    return revocations


def entry(world: CatalogWorld, kind: Kind, id_: str) -> Revocation:
    return Revocation(kind, id_, Reason.DMCA, timestamp(world.clock.wall()))


async def ended(catalog: NodeCatalog) -> BaseException:
    """How the watch over what is served ends."""
    async with asyncio.timeout(10):
        (outcome,) = await asyncio.gather(catalog.watch(), return_exceptions=True)
    assert isinstance(outcome, BaseException)
    return outcome


@pytest.mark.parametrize("kind", [Kind.RELEASE, Kind.KEY, Kind.LICENSE, Kind.SHARD, Kind.INFOHASH])
async def test_what_is_revoked_while_it_is_served_ends_within_one_heartbeat(
    mesh: Mesh,  # noqa: F811
    kind: Kind,
) -> None:
    ids = {
        Kind.RELEASE: MANIFEST.release_id,
        Kind.KEY: mesh.world.keys.acme.public.key_id,
        Kind.LICENSE: MANIFEST.license.id,
        Kind.SHARD: MANIFEST.shard("layer", 0).root,
        Kind.INFOHASH: MANIFEST.torrent.infohash,
    }
    catalog = await mesh.join()
    catalog.guard(MANIFEST, MANIFEST.shards)
    publish(mesh.world, entry(mesh.world, kind, ids[kind]))
    mesh.served.refresh()
    await mesh.beat(catalog)
    assert isinstance(outcome := await ended(catalog), ReleaseRevoked)
    assert outcome.exit_code == 5


async def test_a_revoked_shard_ends_only_who_holds_it(mesh: Mesh) -> None:  # noqa: F811
    catalog = await mesh.join()
    catalog.guard(MANIFEST, [MANIFEST.shard("layer", 1)])
    publish(mesh.world, entry(mesh.world, Kind.SHARD, MANIFEST.shard("layer", 0).root))
    mesh.served.refresh()
    await mesh.beat(catalog)
    catalog.judge()
    catalog.check()
    with pytest.raises(ReleaseRevoked):
        catalog.guard(MANIFEST, [MANIFEST.shard("layer", 0)])


async def test_what_is_revoked_is_refused_at_the_door_by_both_sides(mesh: Mesh) -> None:  # noqa: F811
    publish(mesh.world, entry(mesh.world, Kind.RELEASE, MANIFEST.release_id))
    mesh.served.refresh()
    offer = await mesh.ask()
    believed = await mesh.believe(offer)
    assert believed.catalog is not None
    with pytest.raises(ReleaseRevoked):
        believed.catalog.guard(MANIFEST, MANIFEST.shards)
    with pytest.raises(LicenseRefused, match="was revoked"):  # a node that looks away
        await mesh.client.accept_offer(offer.release_id, offer.layers, 1, b"", 2)


async def test_a_node_with_an_older_list_than_the_coordinators_is_sent_back(mesh: Mesh) -> None:  # noqa: F811
    publish(mesh.world)
    mesh.served.refresh()
    offer = await mesh.ask()
    with pytest.raises(Temporary, match="refresh the catalog"):
        await mesh.client.accept_offer(offer.release_id, offer.layers, 1, b"", 0)
    believed = await mesh.believe(offer)
    assert believed.catalog is not None
    known = believed.catalog.revocations_version
    assert known == mesh.served.revocations_version
    await mesh.client.accept_offer(offer.release_id, offer.layers, 1, b"", known)


async def test_a_stale_list_lets_nothing_new_in(mesh: Mesh) -> None:  # noqa: F811
    publish(mesh.world)
    mesh.served.refresh()
    catalog = await mesh.join()
    catalog.guard(MANIFEST, MANIFEST.shards)
    catalog.check()
    mesh.world.clock.advance(7 * DAY)
    with pytest.raises(RevocationsStale, match="mesh revoke --refresh"):
        catalog.check()  # before a session opens, and before a stage is loaded
    with pytest.raises(RevocationsStale):
        catalog.guard(MANIFEST, MANIFEST.shards)
    with pytest.raises(RevocationsStale):
        mesh.served.check_revoked(MANIFEST, MANIFEST.shards)
    catalog.judge()  # what runs is not cut off by somebody's silence


def test_a_lifted_revocation_is_a_newer_list(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    target = (Kind.RELEASE, MANIFEST.release_id)
    revoked = publish(world, entry(world, *target))
    lifted = revoked.lifting([target], world.clock.wall())
    world.catalog.set_revocations(
        lifted.to_bytes(), lifted.expires_at, [world.keys.takedown, world.keys.online]
    )
    found = world.view().revocation_list()
    assert found == lifted
    found.check(MANIFEST, world.keys.acme.public.key_id, MANIFEST.shards, world.clock.wall())


def test_an_older_list_shown_again_is_refused(tmp_path: Path) -> None:
    """Rollback: everything in it was signed once."""
    world = make_world(tmp_path)
    publish(world)
    shutil.copytree(world.directory, tmp_path / "old")
    publish(world, entry(world, Kind.RELEASE, MANIFEST.release_id))
    assert world.view().revocation_list() is not None
    with pytest.raises(CatalogRefused):
        world.view(directory_source(tmp_path / "old"))


def test_a_list_that_was_not_renewed_is_refused(tmp_path: Path) -> None:
    """Freeze: somebody shows nothing newer, the online key included."""
    world = make_world(tmp_path, days_ago=8)
    publish(world)
    world.clock.advance(8 * DAY)
    world.catalog.refresh([world.keys.online])
    with pytest.raises(CatalogExpired):
        world.view().revocation_list()


def test_nobody_but_the_takedown_role_revokes(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    revocations = RevocationList.first(world.clock.wall())
    outcome = world.catalog.set_revocations(
        revocations.to_bytes(), revocations.expires_at, [world.keys.acme, world.keys.online]
    )
    assert outcome.missing
    assert world.view().revocation_list() is None


def test_a_stolen_key_signs_nothing_that_counts_after_its_revocation(tmp_path: Path) -> None:
    """The thief backdates; the publisher signs the honest release again with a new key and keeps its id."""
    world = make_world(tmp_path)
    now = world.clock.wall()
    found = publish(world, entry(world, Kind.KEY, world.keys.acme.public.key_id))
    world.publish(named("backdoor", created="2001-01-01T00:00:00Z"))
    for release in world.view().releases():
        with pytest.raises(ReleaseRevoked):
            found.check(release.manifest, release.signer, release.manifest.shards, now)


def audited(data: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(data / "state.db")) as database:
        return database.execute("SELECT event, detail FROM audit WHERE event LIKE '%revoked'").fetchall()


async def test_real_processes_unload_delete_and_go_within_a_heartbeat(tmp_path: Path) -> None:
    packed = pack_tiny(tmp_path / "packed", num_layers=2)
    keys, directory = Keys(acme=packed.key), tmp_path / "catalog"
    catalog, _ = Catalog.create(directory, plan_of(keys), keys.all)
    catalog.add_publisher("acme", RoleKeys((packed.key.public,)), keys.all)
    catalog.add_release("acme", packed.open().envelope, keys.all)
    remember_place(directory, "acme", "tiny", packed.directory)
    keys.online.save(tmp_path / "online.key")
    keys.takedown.save(tmp_path / "takedown.key")
    root = tmp_path / "root.json"
    root.write_bytes(catalog.root())
    (tmp_path / "logs").mkdir()
    up = [
        command("mesh-coordinator"), "up", "--release", "acme/tiny", "--json", "--lease", "3",
        "--catalog", str(directory), "--online-key", str(tmp_path / "online.key"),
        "--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--data", str(tmp_path / "coordinator"),
    ]  # fmt: skip
    release = str(packed.directory)
    async with children(tmp_path / "logs", lambda name, event: None) as start:
        coordinator = await start("coordinator", up)
        listening = await coordinator.event("listening", within_seconds=START)
        grpc, token = listening["grpc"], listening["token"]
        seed = [command("mesh"), "seed", release, "--trust", str(root), "--catalog", str(directory), "--json"]
        await start("seeder", [*seed, "--coordinator", grpc, "--token", token])
        join = node_command(grpc, token, "n", tmp_path / "n", packed.manifest, Share(2 << 30, None), 64)
        node = await start("n", join)
        await node.event("ready", within_seconds=START)
        assert list((tmp_path / "n" / "shards" / "blobs").iterdir())

        revoke = [
            command("mesh"), "revoke", "--catalog", str(directory), "--release", packed.manifest.release_id,
            "--reason", "dmca", "--action", "delete", "--case", "case 7",
            "--sign-with", str(tmp_path / "takedown.key"),
        ]  # fmt: skip
        assert (await run(revoke)).code == 0
        async with asyncio.timeout(1 + 1 + 2):  # the coordinator looks every second; a heartbeat; unloading
            assert await node.wait() == 5, node.last_words()
        assert "was revoked: release" in node.last_words()
        assert not list((tmp_path / "n" / "shards" / "blobs").iterdir())
        assert not [path for path in (tmp_path / "n").rglob("*.safetensors") if path.is_file()]
        async with asyncio.timeout(10):
            while not (lines := audited(tmp_path / "coordinator")):
                await asyncio.sleep(0.05)
    assert [event for event, _ in lines] == ["release revoked"]
    assert "case 7" in lines[0][1]

    refused(await run(up), 5, "was revoked", "case 7")
    refused(await run(seed), 5, "was revoked")
    verify = [command("mesh"), "verify", release, "--trust", str(root), "--catalog", str(directory)]
    refused(await run(verify), 5, "was revoked")
    lift = [*revoke[:6], "--lift", "--json", "--sign-with", str(tmp_path / "takedown.key")]
    assert (await run([*lift, "--sign-with", str(tmp_path / "online.key")])).code == 0
    assert (await run(verify)).code == 0
