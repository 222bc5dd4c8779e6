"""A catalog as its operator changes it: nothing is served before enough people have signed, and everything after."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mesh.errors import CatalogRefused, NotFound, UnknownKey, UsageError
from mesh.weights.trust.catalog.client import CatalogClient
from mesh.weights.trust.catalog.names import is_file_name
from mesh.weights.trust.catalog.placing import find_place, remember_place
from mesh.weights.trust.catalog.plan import RoleKeys
from mesh.weights.trust.catalog.repository import Catalog
from mesh.weights.trust.catalog.sources import directory_source
from mesh.weights.trust.signing import PrivateKey, sign_manifest
from tests.support.catalogs import PATH, CatalogWorld, Keys, make_world, named, plan_of
from tests.support.clock import ManualClock


@pytest.fixture
def world(tmp_path: Path) -> CatalogWorld:
    return make_world(tmp_path)


def test_new_catalog_waits_until_its_root_is_signed_by_enough(tmp_path: Path) -> None:
    """Two people, one after the other, each with their own key; nothing is there to be pinned before."""
    keys = Keys()
    catalog, outcome = Catalog.create(
        tmp_path / "catalog", plan_of(keys), [keys.root[0], keys.targets, keys.takedown]
    )
    assert outcome.published == ()
    (root,) = [missing for missing in outcome.missing if missing.role == "root"]
    assert (root.signatures, set(root.keys)) == (1, {key.public.key_id for key in keys.root[1:]})
    with pytest.raises(NotFound, match="no root is signed yet"):
        catalog.root()

    outcome = Catalog.open(tmp_path / "catalog").sign([keys.root[2]])
    assert {role for role, _ in outcome.published} == {"root", "targets", "takedown"}
    assert not outcome.is_online_signed  # neither of them has the online key
    assert catalog.version == 0
    assert Catalog.open(tmp_path / "catalog").refresh([keys.online]) is True
    assert catalog.version == 1


def test_change_that_lacks_a_signature_is_not_served(world: CatalogWorld) -> None:
    second = PrivateKey.generate()
    signers = [*world.keys.root, world.keys.targets, second, world.keys.online]
    assert not world.catalog.rotate("targets", signers, add=[second.public], threshold=2).missing
    before = world.view().version

    outcome = world.catalog.remove_publisher("acme", [second, world.keys.online])
    assert [(missing.role, missing.keys) for missing in outcome.missing] == [
        ("targets", (world.keys.targets.public.key_id,))
    ]
    assert world.view().version == before
    assert world.view().release(PATH).publisher == "acme"

    assert not world.catalog.sign([world.keys.targets, world.keys.online]).missing
    with pytest.raises(NotFound):
        world.view().release(PATH)


def test_staged_change_can_be_discarded(world: CatalogWorld) -> None:
    assert world.catalog.remove_publisher("acme", []).missing
    assert world.catalog.discard() == ("targets",)
    assert not world.catalog.sign(world.keys.all).published
    assert world.view().release(PATH).publisher == "acme"


def test_changes_by_two_people_to_one_role_are_one_version(world: CatalogWorld) -> None:
    """The second edit takes the first one's signatures away: nobody has signed both."""
    for publisher in ("beta", "gamma"):
        world.catalog.add_publisher(publisher, RoleKeys((PrivateKey.generate().public,)), [])
    outcome = world.catalog.sign([world.keys.targets, world.keys.online])
    assert outcome.published == (("targets", 3),)
    assert [row.role for row in world.catalog.status().roles][4:] == [
        "takedown", "publisher-acme", "publisher-beta", "publisher-gamma",
    ]  # fmt: skip


def test_targets_key_is_rotated_in_one_step_with_what_it_signs(world: CatalogWorld) -> None:
    """The new root names a key that has not signed the targets yet: both wait, and go live together."""
    fresh = PrivateKey.generate()
    outcome = world.catalog.rotate(
        "targets",
        [*world.keys.root, world.keys.online],
        add=[fresh.public],
        remove=[world.keys.targets.public.key_id],
    )
    assert outcome.published == ()
    assert world.view().release(PATH).publisher == "acme"
    outcome = world.catalog.sign([fresh, world.keys.online])
    assert outcome.published == (("targets", 3), ("root", 2))
    view = world.view()
    assert (view.root_version, view.release(PATH).publisher) == (2, "acme")
    assert world.catalog.add_publisher("beta", RoleKeys((fresh.public,)), [world.keys.targets]).missing


def test_manifest_signed_anew_keeps_its_release_id(world: CatalogWorld) -> None:
    second = PrivateKey.generate()
    world.catalog.rotate("publisher-acme", world.keys.all, add=[second.public])
    release = world.view().release(PATH)
    world.publish(release.manifest, signed_by=second)
    again = world.view().release(PATH)
    assert again.manifest.release_id == release.manifest.release_id
    assert (release.signer, again.signer) == (world.keys.acme.public.key_id, second.public.key_id)
    assert world.view().find_release(again.manifest.release_id) == again
    assert world.view().find(again.envelope) == again
    with pytest.raises(NotFound, match="another version or signature"):
        world.view().find(release.envelope)


def test_newer_release_of_a_name_takes_the_place_of_the_older(world: CatalogWorld) -> None:
    old = world.view().release(PATH)
    world.publish(named("tiny", created="2031-01-01T00:00:00Z"))
    assert world.view().release(PATH).manifest.created == "2031-01-01T00:00:00Z"
    with pytest.raises(NotFound):
        world.view().find_release(old.manifest.release_id)


def test_release_is_found_by_its_name(world: CatalogWorld) -> None:
    assert world.view().find_name("tiny") == world.view().find_name("acme/tiny")
    beta = PrivateKey.generate()
    world.catalog.add_publisher("beta", RoleKeys((beta.public,)), world.keys.all)
    world.catalog.add_release("beta", sign_manifest(named("tiny"), beta), [beta, world.keys.online])
    with pytest.raises(NotFound, match="PUBLISHER/NAME"):
        world.view().find_name("tiny")
    assert world.view().find_name("beta/tiny").publisher == "beta"


def test_online_roles_are_signed_anew_when_half_their_time_is_over(world: CatalogWorld) -> None:
    before = world.catalog.version
    assert world.catalog.refresh([world.keys.online]) is False
    world.clock.advance(23 * 3600)
    assert world.catalog.refresh([world.keys.online]) is False
    world.clock.advance(2 * 3600)
    assert world.catalog.refresh([]) is None
    assert world.catalog.refresh([world.keys.online]) is True
    assert world.catalog.version == before + 1
    assert world.view().fresh_until == pytest.approx(world.clock.wall() + 2 * 86400, abs=1)


def test_offline_roles_are_renewed_when_a_third_of_their_time_is_left(world: CatalogWorld) -> None:
    assert world.catalog.renew(world.keys.all).published == ()
    world.clock.advance(61 * 86400)
    renewed = {role for role, _ in world.catalog.renew(world.keys.all).published}
    assert renewed == {"targets", "takedown", "publisher-acme"}  # the root is good for a year
    assert [role for role, _ in world.catalog.renew(world.keys.all, ["root"]).published] == ["root"]
    with pytest.raises(NotFound, match="no offline role 'snapshot'"):
        world.catalog.renew(world.keys.all, ["snapshot"])


def test_revocation_list_is_signed_by_takedown_and_by_nobody_else(world: CatalogWorld) -> None:
    assert world.view().revocations() is None
    until = world.clock.wall() + 7 * 86400
    others = [*world.keys.root, world.keys.targets, world.keys.acme, world.keys.online]
    assert world.catalog.set_revocations(b"{}", until, others).missing
    assert world.view().revocations() is None
    world.catalog.sign([world.keys.takedown, world.keys.online])
    found = world.view().revocations()
    assert found is not None
    assert (found.data, found.version, found.expires) == (b"{}", 2, int(until))
    world.catalog.set_revocations(b"[]", until, world.keys.all)
    assert (found := world.view().revocations()) is not None
    assert (found.data, found.version) == (b"[]", 3)


def test_every_root_ever_pinned_is_found_by_its_digest(world: CatalogWorld) -> None:
    first = world.pinned
    world.catalog.rotate("root", world.keys.all, add=[PrivateKey.generate().public])
    second = world.catalog.root()
    for root in (first, second):
        assert world.catalog.root_with_digest(hashlib.sha256(root).digest()) == root
        assert world.view(pinned=root).root_version == 2
    assert world.catalog.root_with_digest(bytes(32)) is None


def test_memory_of_a_catalog_outlives_the_root_that_was_pinned(world: CatalogWorld) -> None:
    """A node that joins again with a newer token has not forgotten what it saw with the older one."""
    old = (world.directory / "metadata/timestamp.json").read_bytes()
    world.catalog.rotate("root", world.keys.all, add=[PrivateKey.generate().public])
    world.catalog.add_publisher("beta", RoleKeys((PrivateKey.generate().public,)), world.keys.all)
    world.view()
    (world.directory / "metadata/timestamp.json").write_bytes(old)
    with pytest.raises(CatalogRefused, match="older than what was seen before"):
        world.view(pinned=world.catalog.root())


@pytest.mark.parametrize(("keys", "threshold"), [(1, 0), (1, 2), (0, 1), (17, 1)])
def test_threshold_that_cannot_be_reached_is_refused(world: CatalogWorld, keys: int, threshold: int) -> None:
    some = tuple(PrivateKey.generate().public for _ in range(keys))
    with pytest.raises(UsageError, match="threshold"):
        world.catalog.add_publisher("beta", RoleKeys(some, threshold), world.keys.all)
    assert not world.catalog.status().missing


def test_refused_change_leaves_nothing_staged(world: CatalogWorld) -> None:
    acme = world.keys.acme.public
    for change, error in (
        (lambda: world.catalog.add_publisher("acme", RoleKeys((acme,)), []), UsageError),
        (lambda: world.catalog.add_publisher("../x", RoleKeys((acme,)), []), UsageError),
        (lambda: world.catalog.remove_publisher("nobody", []), NotFound),
        (lambda: world.catalog.remove_release("acme", "nothing", []), NotFound),
        (lambda: world.catalog.rotate("root", [], remove=["ed25519:0"]), NotFound),
        (lambda: world.catalog.rotate("publisher-acme", [], remove=[acme.key_id]), UsageError),
        (lambda: world.catalog.rotate("nothing", [], add=[acme]), NotFound),
        (
            lambda: world.catalog.add_release("acme", sign_manifest(named("x"), PrivateKey.generate()), []),
            UnknownKey,
        ),
    ):
        with pytest.raises(error):
            change()
    assert world.catalog.status().missing == ()


def test_directory_that_holds_something_is_not_made_a_catalog(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="not an empty directory"):
        Catalog.create(tmp_path, plan_of(Keys()), [])
    with pytest.raises(NotFound, match="is no catalog"):
        Catalog.open(tmp_path)


def test_root_that_was_changed_on_disk_is_noticed_by_its_operator(world: CatalogWorld) -> None:
    file = world.directory / "metadata/1.root.json"
    file.write_bytes(file.read_bytes().replace(b'"threshold":2', b'"threshold":1'))
    with pytest.raises(CatalogRefused, match=r"1\.root\.json is not signed"):
        world.catalog.status()


@pytest.mark.parametrize(
    "name",
    [
        "", "metadata/../x", "metadata/0.root.json", "metadata/root.json", "metadata/1.timestamp.json", "/etc/passwd",
        "metadata/1.publisher-.json", "staged/root.json", "lock", "metadata/1.root.json\n", "metadata/1.ROOT.json",
        "targets/models/acme/../../x/manifest.dsse.json", "targets/revocations/current.json",
        "targets/models/acme/.hidden/" + "0" * 64 + ".manifest.dsse.json", "metadata/١.root.json",
    ],
)  # fmt: skip
def test_only_a_catalogs_own_names_are_handed_out(world: CatalogWorld, name: str) -> None:
    assert not is_file_name(name)
    with pytest.raises(NotFound):
        world.catalog.file(name)
    with pytest.raises(NotFound):
        list(directory_source(world.directory)(name))


def test_whole_catalog_can_be_followed_over_another_source(world: CatalogWorld, tmp_path: Path) -> None:
    """What is served is what lies there: a mirror that copies files is as good as the original."""
    asked: list[str] = []

    def mirror(name: str):  # type: ignore[no-untyped-def]
        asked.append(name)
        return iter([world.catalog.file(name)])

    client = CatalogClient(tmp_path / "elsewhere", world.pinned, mirror)
    assert client.refresh().release(PATH).manifest == named("tiny")
    assert all(is_file_name(name) for name in asked)
    asked.clear()
    client.refresh().release(PATH)
    assert asked == [
        "metadata/2.root.json",
        "metadata/timestamp.json",
    ]  # nothing new: nothing else is fetched


def test_clock_of_the_operator_is_what_expiry_is_counted_from(tmp_path: Path) -> None:
    keys = Keys()
    clock = ManualClock(wall=1_900_000_000)
    catalog, _ = Catalog.create(tmp_path / "catalog", plan_of(keys), keys.all, clock)
    expires = {
        row.role: (row.expires.timestamp() - clock.wall()) / 86400
        for row in catalog.status().roles
        if row.expires
    }
    assert expires == {"root": 365, "targets": 90, "takedown": 90, "snapshot": 2, "timestamp": 2}


def test_release_is_found_where_it_was_put_and_nothing_else_is(world: CatalogWorld, tmp_path: Path) -> None:
    remember_place(world.directory, "acme", "tiny", tmp_path)
    remember_place(world.directory, "acme", "tiny", tmp_path / "moved")
    assert find_place(world.directory, "tiny").readlink() == tmp_path / "moved"
    assert find_place(world.directory, "acme/tiny") == find_place(world.directory, "tiny")
    remember_place(world.directory, "beta", "tiny", tmp_path)
    for name in ("tiny", "other", "beta/other", "../../etc", "acme/..", "*/tiny", ""):
        with pytest.raises(NotFound):
            find_place(world.directory, name)
    with pytest.raises(UsageError):
        remember_place(world.directory, "..", "tiny", tmp_path)
