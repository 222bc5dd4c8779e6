"""What a thief, a liar or a slow operator can do to a catalog, each on a real repository on disk, and what a node does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import MetaFile, TargetFile

from mesh.errors import CatalogExpired, CatalogRefused, NotFound, UnknownKey
from mesh.weights.trust.catalog.names import metadata_file, target_file
from mesh.weights.trust.catalog.plan import RoleKeys
from mesh.weights.trust.catalog.sources import directory_source
from mesh.weights.trust.revocation import Kind, Reason, Revocation, RevocationList, timestamp
from mesh.weights.trust.signing import PrivateKey, sign_manifest
from tests.support.catalogs import PATH, CatalogWorld, make_world, named


@pytest.fixture
def world(tmp_path: Path) -> CatalogWorld:
    return make_world(tmp_path)


def meta_of(world: CatalogWorld, role: str, version: int) -> MetaFile:
    data = (world.directory / metadata_file(role, version)).read_bytes()
    return MetaFile.from_data(version, data, ["sha256"])


def newest(world: CatalogWorld, role: str) -> int:
    return world.catalog._files.versions()[role][-1]


def resign_online(world: CatalogWorld, **meta: MetaFile) -> None:
    """Whoever has the online key tells nodes of other versions than the operator's."""
    world.forge(
        "snapshot",
        [world.keys.online],
        lambda signed: signed.meta.update(
            {f"{role.replace('_', '-')}.json": file for role, file in meta.items()}
        ),
    )
    version = newest(world, "snapshot")

    def point(signed: Any) -> None:
        signed.snapshot_meta = meta_of(world, "snapshot", version)

    world.forge("timestamp", [world.keys.online], point)


def test_the_honest_catalog_names_the_release_and_the_key_that_signed(world: CatalogWorld) -> None:
    release = world.view().release(PATH)
    assert (release.publisher, release.manifest) == ("acme", named("tiny"))
    assert release.signer == world.keys.acme.public.key_id
    assert list(release.trust.keys) == [release.signer]


def test_timestamp_that_is_rolled_back_is_refused(world: CatalogWorld) -> None:
    file = world.directory / "metadata/timestamp.json"
    old = file.read_bytes()
    world.publish(named("tiny", created="2031-01-01T00:00:00Z"))
    before = world.view().version
    file.write_bytes(old)
    with pytest.raises(CatalogRefused, match="older than what was seen before") as refusal:
        world.view()
    assert refusal.value.exit_code == 4
    world.catalog.refresh([world.keys.online])  # the node's memory is what it was
    file.write_bytes(old)
    with pytest.raises(CatalogRefused, match=f"must be >= {before}"):
        world.view()


def test_snapshot_that_is_rolled_back_is_refused_even_with_the_online_key(world: CatalogWorld) -> None:
    world.view()
    old = meta_of(world, "snapshot", newest(world, "snapshot") - 1)

    def point_back(signed: Any) -> None:
        signed.snapshot_meta = old

    world.forge("timestamp", [world.keys.online], point_back)
    with pytest.raises(CatalogRefused, match="snapshot version must be >="):
        world.view()


def test_publisher_whose_role_is_rolled_back_is_refused_even_with_the_online_key(world: CatalogWorld) -> None:
    """The manifest of before was withdrawn; nobody can bring it back by signing snapshot and timestamp anew."""
    world.catalog.remove_release("acme", "tiny", [world.keys.acme, world.keys.online])
    with pytest.raises(NotFound, match="does not list"):
        world.view().release(PATH)
    resign_online(world, publisher_acme=meta_of(world, "publisher-acme", 1))
    with pytest.raises(CatalogRefused, match="publisher-acme"):
        world.view()


def test_list_that_is_rolled_back_is_refused_even_with_the_online_key(world: CatalogWorld) -> None:
    """What was revoked since would be allowed again: whoever has seen the newer list takes no older one."""
    now, keys = world.clock.wall(), [world.keys.takedown, world.keys.online]
    before = RevocationList.first(now)
    after = before.adding(
        [Revocation(Kind.RELEASE, named("tiny").release_id, Reason.DMCA, timestamp(now))], now
    )
    for listed in (before, after):
        world.catalog.set_revocations(listed.to_bytes(), listed.expires_at, keys)
    assert world.view().revocation_list() == after
    resign_online(world, takedown=meta_of(world, "takedown", newest(world, "takedown") - 1))
    with pytest.raises(CatalogRefused, match="takedown"):
        world.view()


def test_targets_that_are_rolled_back_are_refused_even_with_the_online_key(world: CatalogWorld) -> None:
    world.catalog.remove_publisher("acme", [world.keys.targets, world.keys.online])
    world.view()
    resign_online(world, targets=meta_of(world, "targets", 2))
    with pytest.raises(CatalogRefused, match=r"targets\.json"):
        world.view()


def test_frozen_catalog_is_refused_once_it_has_expired(tmp_path: Path) -> None:
    """Somebody serves what was true three days ago, and nothing since: the signatures fit, the time does not."""
    world = make_world(tmp_path, days_ago=3)
    with pytest.raises(CatalogExpired, match="mesh catalog refresh") as refusal:
        world.view()
    assert refusal.value.exit_code == 4
    world.clock.advance(3 * 86400)
    assert world.catalog.refresh([world.keys.online]) is True
    assert world.view().release(PATH).publisher == "acme"


def test_targets_that_nobody_renewed_are_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path, days_ago=100)
    world.clock.advance(100 * 86400)
    world.catalog.refresh([world.keys.online])
    with pytest.raises(CatalogExpired, match=r"targets is expired.*mesh catalog renew"):
        world.view()
    world.catalog.renew(world.keys.all)
    assert world.view().release(PATH).manifest.name == "tiny"


def test_versions_that_never_belonged_together_are_refused(world: CatalogWorld) -> None:
    """Mix-and-match: today's snapshot, yesterday's word of the publisher under today's name."""
    yesterday = world.directory / metadata_file("publisher-acme", 1)
    world.publish(named("tiny", created="2031-01-01T00:00:00Z"))
    (world.directory / metadata_file("publisher-acme", 2)).write_bytes(yesterday.read_bytes())
    with pytest.raises(CatalogRefused):
        world.view().release(PATH)


def test_manifest_that_is_swapped_for_another_of_the_same_publisher_is_refused(world: CatalogWorld) -> None:
    other = sign_manifest(named("tiny", created="2031-01-01T00:00:00Z"), world.keys.acme)
    digest = hashlib.sha256(world.catalog.target(PATH)).hexdigest()
    (world.directory / target_file(PATH, digest)).write_bytes(other)
    with pytest.raises(CatalogRefused):
        world.view().release(PATH)


def test_rotating_the_online_key_undoes_a_fast_forward(world: CatalogWorld) -> None:
    """A thief with the online key jumps to a version that honest ones never reach; the next root takes it back."""

    def jump(signed: Any) -> None:
        signed.version = 2**31

    honest = (world.directory / "metadata/timestamp.json").read_bytes()
    world.forge("timestamp", [world.keys.online], jump)
    assert world.view().version == 2**31
    (world.directory / "metadata/timestamp.json").write_bytes(honest)
    world.publish(named("tiny", created="2031-01-01T00:00:00Z"))
    with pytest.raises(CatalogRefused, match=r"must be >= 2147483648"):
        world.view()

    stolen, fresh = world.keys.online, PrivateKey.generate()
    signers = [*world.keys.root[:2], fresh]
    for role in ("snapshot", "timestamp"):
        world.catalog.rotate(role, signers, add=[fresh.public], remove=[stolen.public.key_id])
    view = world.view()
    assert view.version < 100
    assert view.release(PATH).manifest.created == "2031-01-01T00:00:00Z"


def test_publisher_cannot_speak_for_another(world: CatalogWorld) -> None:
    """``mallory`` lists a manifest under acme's path; nobody who asks for that path gets to see it."""
    mallory = PrivateKey.generate()
    world.catalog.add_publisher(
        "mallory", RoleKeys((mallory.public,)), [world.keys.targets, world.keys.online]
    )
    world.catalog.add_release("mallory", sign_manifest(named("mine"), mallory), [mallory, world.keys.online])
    forged = sign_manifest(named("new"), mallory)
    path = "models/acme/new/manifest.dsse.json"
    target = TargetFile.from_data(path, forged, ["sha256"])
    world.forge("publisher-mallory", [mallory], lambda signed: signed.targets.update({path: target}))
    (world.directory / target_file(path, hashlib.sha256(forged).hexdigest())).parent.mkdir(parents=True)
    (world.directory / target_file(path, hashlib.sha256(forged).hexdigest())).write_bytes(forged)
    world.catalog.refresh([world.keys.online])
    view = world.view()
    with pytest.raises(NotFound, match="does not list"):
        view.release(path)
    with pytest.raises(NotFound, match="not in the catalog"):
        view.find(forged)
    assert [release.path for release in view.releases()] == [PATH, "models/mallory/mine/manifest.dsse.json"]


def test_manifest_signed_by_a_key_that_is_not_the_publishers_is_refused(world: CatalogWorld) -> None:
    """Refused where it is published and, should somebody get around that, where it is read."""
    stranger = PrivateKey.generate()
    forged = sign_manifest(named("tiny", created="2031-01-01T00:00:00Z"), stranger)
    with pytest.raises(UnknownKey):
        world.catalog.add_release("acme", forged, world.keys.all)
    target = TargetFile.from_data(PATH, forged, ["sha256"])
    (world.directory / target_file(PATH, hashlib.sha256(forged).hexdigest())).write_bytes(forged)
    world.forge("publisher-acme", [world.keys.acme], lambda signed: signed.targets.update({PATH: target}))
    world.catalog.refresh([world.keys.online])
    with pytest.raises(UnknownKey):
        world.view().release(PATH)


def test_role_signed_by_fewer_than_its_threshold_is_refused(world: CatalogWorld) -> None:
    second = PrivateKey.generate()
    world.catalog.rotate(
        "publisher-acme", [world.keys.targets, world.keys.acme, second, world.keys.online],
        add=[second.public], threshold=2,
    )  # fmt: skip
    assert world.view().release(PATH).publisher == "acme"
    world.forge("publisher-acme", [world.keys.acme])
    version = newest(world, "publisher-acme")
    resign_online(world, publisher_acme=meta_of(world, "publisher-acme", version))
    with pytest.raises(CatalogRefused, match="signed by 1/2 keys"):
        world.view().release(PATH)


def test_root_that_the_one_before_did_not_sign_is_refused(world: CatalogWorld) -> None:
    """Two of three root keys are needed; a thief who has one makes a root that only satisfies itself."""
    thief = PrivateKey.generate()

    def seize(signed: Any) -> None:
        from mesh.weights.trust.catalog.keys import tuf_key

        for role in ("root", "targets", "snapshot", "timestamp"):
            signed.keys[tuf_key(thief.public).keyid] = tuf_key(thief.public)
            signed.roles[role].keyids, signed.roles[role].threshold = [tuf_key(thief.public).keyid], 1

    world.view()
    world.forge("root", [world.keys.root[0], thief], seize)
    with pytest.raises(CatalogRefused, match="1/2 keys"):
        world.view()


@pytest.mark.parametrize("file", ["metadata/timestamp.json", "metadata/2.root.json"])
def test_data_without_end_is_cut_off(world: CatalogWorld, file: str) -> None:
    honest, given = directory_source(world.directory), 0

    def endless(name: str) -> Iterator[bytes]:
        nonlocal given
        if name != file:
            yield from honest(name)
            return
        while True:
            given += 1
            yield b" " * 65536

    with pytest.raises(CatalogRefused, match="exceeding"):
        world.view(endless)
    assert 1 <= given <= 3


def test_stolen_key_is_worth_nothing_once_its_publisher_is_removed(world: CatalogWorld) -> None:
    world.view().release(PATH)
    world.catalog.remove_publisher("acme", [world.keys.targets, world.keys.online])
    with pytest.raises(NotFound, match="no publisher 'acme'"):
        world.view().release(PATH)
    world.forge("publisher-acme", [world.keys.acme])
    resign_online(world, publisher_acme=meta_of(world, "publisher-acme", newest(world, "publisher-acme")))
    with pytest.raises(NotFound, match="no publisher 'acme'"):
        world.view().release(PATH)


def test_stolen_key_is_worth_nothing_once_it_was_rotated_away(world: CatalogWorld) -> None:
    """The publisher cannot be reached to sign anew: what they signed before is refused as well, until they do."""
    stolen, fresh = world.keys.acme, PrivateKey.generate()
    outcome = world.catalog.rotate(
        "publisher-acme",
        [world.keys.targets, world.keys.online],
        add=[fresh.public],
        remove=[stolen.public.key_id],
    )
    assert [missing.role for missing in outcome.missing] == ["publisher-acme"]
    with pytest.raises(CatalogRefused, match="signed by 0/1 keys"):
        world.view().release(PATH)
    world.catalog.sign([fresh, world.keys.online])
    with pytest.raises(UnknownKey):  # the role is theirs again, the manifest still has the thief's signature
        world.view().release(PATH)
    world.catalog.add_release("acme", sign_manifest(named("tiny"), fresh), [fresh, world.keys.online])
    release = world.view().release(PATH)
    assert release.manifest.release_id == named("tiny").release_id  # signed anew, and still the same release
    assert release.signer == fresh.public.key_id


def test_one_publishers_broken_role_does_not_hide_the_others(world: CatalogWorld) -> None:
    beta = PrivateKey.generate()
    world.catalog.add_publisher("beta", RoleKeys((beta.public,)), [world.keys.targets, world.keys.online])
    world.catalog.add_release("beta", sign_manifest(named("tiny"), beta), [beta, world.keys.online])
    world.catalog.rotate(
        "publisher-acme", [world.keys.targets, world.keys.online],
        add=[PrivateKey.generate().public], remove=[world.keys.acme.public.key_id],
    )  # fmt: skip
    view = world.view()
    assert [release.publisher for release in view.releases()] == ["beta"]
    assert list(view.problems) == ["acme"]


def test_node_that_slept_through_many_rotations_follows_the_chain(world: CatalogWorld) -> None:
    """Every root key is another one by now; each step was signed by the keys before it."""
    keys = list(world.keys.root)
    for turn in range(6):
        fresh = PrivateKey.generate()
        retired = keys[turn % 3]
        outcome = world.catalog.rotate(
            "root", [*keys, fresh, world.keys.online], add=[fresh.public], remove=[retired.public.key_id]
        )
        assert not outcome.missing
        keys[turn % 3] = fresh
    view = world.view()
    assert view.root_version == 7
    assert view.release(PATH).publisher == "acme"


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"{" * 5000, b'{"signed":{},"signatures":[]}', b"\xff\xfe", b"null"]
)
def test_bytes_that_are_no_metadata_are_refused_in_words(world: CatalogWorld, data: bytes) -> None:
    (world.directory / "metadata/timestamp.json").write_bytes(data)
    with pytest.raises(CatalogRefused):
        world.view()
    with pytest.raises(CatalogRefused):
        world.view(pinned=data)


def test_document_with_a_signature_by_one_key_under_two_names_counts_once(tmp_path: Path) -> None:
    from mesh.errors import UsageError

    key = PrivateKey.generate().public
    with pytest.raises(UsageError, match="the same key twice"):
        RoleKeys((key, key), threshold=2).check("root")
