"""A catalog all the way: changed on the operator's disk, served by a real coordinator, followed by a node."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc.aio
import pytest

from coordinator.availability import Availability
from coordinator.hosting import Hosting
from coordinator.join_tokens import create_token
from coordinator.membership import Membership
from coordinator.served_catalog import ServedCatalog
from coordinator.service import CoordinatorService, OfferedRelease
from coordinator.state import open_state
from mesh.belief import Belief
from mesh.cli.believing import believe_token, open_catalog
from mesh.errors import (
    CatalogExpired,
    CatalogRefused,
    IntegrityError,
    LicenseRefused,
    MeshError,
    NotAuthorised,
    NotFound,
    UnknownKey,
    UsageError,
)
from mesh.token import JoinToken
from mesh.weights.trust.license_text import LicenseTexts
from mesh.weights.trust.revocation import Kind, Reason, Revocation, RevocationList, timestamp
from mesh.weights.trust.signing import PrivateKey, TrustRoot, sign_manifest
from mesh.wire import coordinator_pb2, coordinator_pb2_grpc
from mesh.wire.channel import open_channel, server_options
from mesh.wire.protocol import VERSION
from node.accepting import Limits, OfferedBytes
from node.catalog import GRACE_SECONDS, NodeCatalog
from node.coordinator_client import CoordinatorClient
from node.trusting import Believed, coordinator_source, whom_to_believe
from tests.support.catalogs import PATH, CatalogWorld, make_world, named
from tests.support.hosting import hosted

LIMITS = Limits(
    memory_bytes=1 << 40,
    disk_bytes=1 << 40,
    kv_tokens=128,
    max_sessions=4,
    layers=None,
    model=None,
    accepted_terms=frozenset(),
)


@dataclass
class Mesh:
    """A coordinator with a catalog, and a volunteer at its door."""

    world: CatalogWorld
    served: ServedCatalog
    client: CoordinatorClient
    token: JoinToken
    node_dir: Path
    target: str
    following: list[asyncio.Task[None]] = field(default_factory=list)

    async def ask(self) -> OfferedBytes:
        offer, _ = await self.client.request_offer(
            token_secret=self.token.secret,
            name="node",
            kernel_id="kernel",
            limits=LIMITS,
            wait_seconds=0,
            trust_digest=self.token.trust_digest,
        )
        return offer

    async def believe(
        self, offer: OfferedBytes, *, brought: bytes | None = None, secret: bytes | None = None
    ) -> Believed:
        return await whom_to_believe(
            offer,
            trust_digest=self.token.trust_digest,
            brought=brought,
            memory=self.node_dir,
            source=coordinator_source(self.client, secret if secret is not None else self.token.secret),
            clock=self.world.clock,
        )

    async def join(self) -> NodeCatalog:
        """As far as a lease, with the catalog followed beside it."""
        offer = await self.ask()
        catalog = (await self.believe(offer)).catalog
        assert catalog is not None
        await self.client.accept_offer(offer.release_id, offer.layers, 1, b"", catalog.revocations_version)
        self.following.append(asyncio.create_task(catalog.run()))
        return catalog

    async def beat(self, catalog: NodeCatalog) -> None:
        """One heartbeat; returns once what it told has been taken in."""
        lease = await self.client.heartbeat(coordinator_pb2.HeartbeatRequest(state=coordinator_pb2.FETCHING))
        catalog.on_lease(lease.catalog_version)
        async with asyncio.timeout(10):
            while catalog.view.version != lease.catalog_version:
                await asyncio.sleep(0.005)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    world = make_world(tmp_path)
    served = ServedCatalog(
        world.directory, tmp_path / "coordinator/catalog", [world.keys.online], world.clock
    )
    manifest = named("tiny")
    release = OfferedRelease(
        manifest, b"", sign_manifest(manifest, world.keys.acme), b"torrent", LicenseTexts(b"")
    )
    membership = Membership(manifest.config.num_layers)
    hosting = Hosting(world.clock)
    hosting.add(hosted(release, membership, Availability("tiny", membership, world.clock)))
    server = grpc.aio.server(options=server_options())
    async with open_state(tmp_path / "coordinator") as state:
        coordinator_pb2_grpc.add_CoordinatorServicer_to_server(
            CoordinatorService(hosting, state, world.clock, served),
            server,
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        token = await create_token(state, served.root_digest, "test", world.clock.wall())
        async with open_channel(f"127.0.0.1:{port}") as channel:
            client = CoordinatorClient(channel, f"127.0.0.1:{port}", node_id="node", incarnation=1)
            mesh = Mesh(world, served, client, token, tmp_path / "node", f"127.0.0.1:{port}")
            yield mesh
            for task in mesh.following:
                task.cancel()
            await asyncio.gather(*mesh.following, return_exceptions=True)
        await server.stop(None)


async def test_node_believes_the_keys_that_the_catalog_gives_its_publisher(mesh: Mesh) -> None:
    offer = await mesh.ask()
    assert (offer.catalog_path, offer.trust_root) == (PATH, mesh.world.pinned)
    believed = await mesh.believe(offer)
    assert list(believed.keys.keys) == [mesh.world.keys.acme.public.key_id]
    assert believed.catalog is not None
    believed.catalog.check()


async def test_verifier_with_a_token_reads_the_catalog_from_the_coordinator(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user"))
    view = await asyncio.to_thread(open_catalog, mesh.world.pinned, mesh.target, mesh.token.encode())
    assert (await asyncio.to_thread(view.release, PATH)).manifest == named("tiny")
    with pytest.raises(UsageError, match="--token"):
        open_catalog(mesh.world.pinned, mesh.target)
    strange = replace(mesh.token, secret=b"x" * 16)
    with pytest.raises(NotAuthorised):
        await asyncio.to_thread(open_catalog, mesh.world.pinned, mesh.target, strange.encode())


async def test_whoever_pulls_by_token_believes_what_the_catalog_lists_today(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only nodes: `mesh pull` and `mesh license` have nothing but the token, which pins the catalog's root."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user"))

    async def believe() -> Belief:
        async with open_channel(mesh.target) as channel:
            request = coordinator_pb2.ReleaseRequest(
                protocol=VERSION, token_secret=mesh.token.secret, trust_digest=mesh.token.trust_digest
            )
            reply = await coordinator_pb2_grpc.CoordinatorStub(channel).GetRelease(request)
        return await asyncio.to_thread(
            believe_token, mesh.token, mesh.target, reply.trust_root, reply.manifest
        )

    belief = await believe()
    assert list(belief.trust.keys) == [mesh.world.keys.acme.public.key_id]
    assert belief.revocation is not None
    manifest, now = named("tiny"), mesh.world.clock.wall()
    entry = Revocation(Kind.RELEASE, manifest.release_id, Reason.DEFECTIVE, timestamp(now))
    revoked = RevocationList.first(now).adding([entry], now)
    keys = mesh.world.keys
    mesh.world.catalog.set_revocations(revoked.to_bytes(), revoked.expires_at, [keys.takedown, keys.online])
    belief = await believe()
    with pytest.raises(LicenseRefused, match="was revoked"):
        await asyncio.to_thread(belief.revocation or pytest.fail, manifest, manifest.shards)
    with pytest.raises(IntegrityError, match="not the one in the join token"):
        believe_token(replace(mesh.token, trust_digest=bytes(32)), mesh.target, mesh.world.pinned, b"")


async def test_manifest_that_the_catalog_does_not_list_is_refused(mesh: Mesh) -> None:
    """Signed by the right key, and withdrawn or never published: a signature alone would have let it in."""
    offer = await mesh.ask()
    unlisted = sign_manifest(named("tiny", created="2031-01-01T00:00:00Z"), mesh.world.keys.acme)
    with pytest.raises(IntegrityError, match="another manifest than the catalog lists"):
        await mesh.believe(replace(offer, manifest=unlisted))
    for path in ("models/acme/other/manifest.dsse.json", "models/mallory/tiny/manifest.dsse.json"):
        with pytest.raises(NotFound):
            await mesh.believe(replace(offer, catalog_path=path))
    with pytest.raises(CatalogRefused, match="no path of a manifest"):
        await mesh.believe(replace(offer, catalog_path="../../etc/passwd"))


async def test_root_that_is_not_the_tokens_is_refused(mesh: Mesh, tmp_path: Path) -> None:
    offer = await mesh.ask()
    (tmp_path / "stranger").mkdir()
    stranger = make_world(tmp_path / "stranger")
    with pytest.raises(IntegrityError, match="not the one in the join token"):
        await mesh.believe(replace(offer, trust_root=stranger.pinned))
    with pytest.raises(CatalogRefused):  # the volunteer's own root decides, and this catalog is not its
        await mesh.believe(offer, brought=stranger.pinned)


async def test_plain_key_list_of_the_volunteer_is_believed_without_a_catalog(mesh: Mesh) -> None:
    keys = TrustRoot.of(mesh.world.keys.acme.public)
    believed = await mesh.believe(await mesh.ask(), brought=keys.to_bytes())
    assert believed == Believed(keys)


async def test_catalogs_root_without_a_catalog_at_the_coordinator_is_refused(mesh: Mesh) -> None:
    offer = replace(await mesh.ask(), catalog_path="")
    with pytest.raises(IntegrityError, match="--catalog"):
        await mesh.believe(offer)


async def test_withdrawn_release_opens_no_new_session_one_heartbeat_later(mesh: Mesh) -> None:
    catalog = await mesh.join()
    catalog.check()
    mesh.world.catalog.remove_release(
        "acme", "tiny", [mesh.world.keys.acme]
    )  # signed offline: no online key here
    assert mesh.served.look()
    await mesh.beat(catalog)
    with pytest.raises(NotFound, match="does not list"):
        catalog.check()
    with pytest.raises(NotFound, match="no longer"):
        await mesh.ask()
    mesh.world.publish(named("tiny"))
    assert mesh.served.look()
    await mesh.beat(catalog)
    catalog.check()  # listed again


async def test_newer_release_of_the_name_does_not_silence_the_nodes_of_the_older(mesh: Mesh) -> None:
    """They go on until the coordinator moves them; but nobody joins for the older one any more."""
    catalog = await mesh.join()
    mesh.world.publish(named("tiny", created="2031-01-01T00:00:00Z"))
    assert mesh.served.look()
    await mesh.beat(catalog)
    catalog.check()
    with pytest.raises(NotFound, match="no longer"):
        await mesh.ask()


async def test_stolen_publisher_key_stops_new_sessions_one_heartbeat_later(mesh: Mesh) -> None:
    catalog = await mesh.join()
    fresh = PrivateKey.generate()
    world = mesh.world
    world.catalog.rotate(
        "publisher-acme",
        [world.keys.targets, fresh],
        add=[fresh.public],
        remove=[world.keys.acme.public.key_id],
    )
    assert mesh.served.look()
    await mesh.beat(catalog)
    with pytest.raises(UnknownKey):
        catalog.check()
    world.catalog.add_release("acme", sign_manifest(named("tiny"), fresh), [fresh])
    assert mesh.served.look()
    await mesh.beat(catalog)
    catalog.check()  # the same release, under the new key
    assert (await mesh.ask()).manifest == world.catalog.target(PATH)


async def test_coordinator_signs_the_timestamp_anew_before_it_expires(mesh: Mesh) -> None:
    catalog = await mesh.join()
    before = catalog.view.version
    assert not mesh.served.look()
    mesh.world.clock.advance(25 * 3600)
    mesh.served.look()
    await mesh.ask()  # the first lease has ended in between
    await mesh.client.accept_offer(named("tiny").release_id, (await mesh.ask()).layers, 1, b"")
    await mesh.beat(catalog)
    assert catalog.view.version == before + 1
    assert catalog.view.fresh_until >= mesh.world.clock.wall() + 47 * 3600


async def test_frozen_catalog_stops_new_sessions_after_the_grace_and_never_before(mesh: Mesh) -> None:
    catalog = await mesh.join()
    left = catalog.view.fresh_until - mesh.world.clock.wall()
    mesh.world.clock.advance(left + GRACE_SECONDS - 1)
    catalog.check()
    mesh.world.clock.advance(2)
    with pytest.raises(CatalogExpired, match="no newer one came"):
        catalog.check()


async def test_older_catalog_than_was_seen_leaves_the_node_with_what_it_has(mesh: Mesh) -> None:
    """A coordinator restored from last week's backup, or one that lies: the node keeps what it knows."""
    catalog = await mesh.join()
    old = {file: file.read_bytes() for file in mesh.world.directory.glob("metadata/timestamp.json")}
    mesh.world.publish(named("other"))
    mesh.served.look()
    await mesh.beat(catalog)
    known = catalog.view.version
    for file, data in old.items():
        file.write_bytes(data)
    with pytest.raises(CatalogRefused, match="older than what was seen before"):
        await catalog.refresh()
    assert catalog.view.version == known
    catalog.check()
    with pytest.raises(CatalogRefused):
        mesh.served.refresh()


async def test_token_of_before_a_root_rotation_is_good_after_it(mesh: Mesh) -> None:
    world = mesh.world
    for _ in range(3):
        world.catalog.rotate("root", world.keys.all, add=[PrivateKey.generate().public])
    mesh.served.look()
    assert mesh.served.root_digest != mesh.token.trust_digest
    offer = await mesh.ask()
    assert hashlib.sha256(offer.trust_root).digest() == mesh.token.trust_digest
    believed = await mesh.believe(offer)
    assert believed.catalog is not None
    assert believed.catalog.view.root_version == 4


async def test_catalog_is_told_to_token_holders_and_members_only(mesh: Mesh) -> None:
    for secret in (b"", b"x" * 16):
        with pytest.raises(NotAuthorised):
            await mesh.client.catalog_file(secret, "metadata/timestamp.json")
    offer = await mesh.ask()
    await mesh.client.accept_offer(offer.release_id, offer.layers, 1, b"")
    assert await mesh.client.catalog_file(b"", "metadata/timestamp.json")  # by its lease


@pytest.mark.parametrize(
    "name", ["", "../coordinator/state.db", "metadata/../lock", "staged/root.json", "/etc/passwd"]
)
async def test_nothing_but_the_catalogs_files_is_handed_out(mesh: Mesh, name: str) -> None:
    with pytest.raises(NotFound, match="no file of a catalog"):
        await mesh.client.catalog_file(mesh.token.secret, name)


async def test_coordinator_without_the_online_key_says_so_and_serves_on(
    mesh: Mesh, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = ServedCatalog(mesh.world.directory, tmp_path / "second", [], mesh.world.clock)
    mesh.world.catalog.remove_release("acme", "tiny", [mesh.world.keys.acme])
    assert served.look()
    assert "--online-key" in caplog.text
    assert served.current(named("tiny").release_id).publisher == "acme"  # not in force yet


async def test_wrong_bytes_from_the_coordinator_are_a_refusal_not_a_crash(mesh: Mesh) -> None:
    offer = await mesh.ask()
    (mesh.world.directory / "metadata/timestamp.json").write_bytes(b'{"signed": ')
    with pytest.raises(MeshError) as refusal:
        await mesh.believe(offer)
    assert isinstance(refusal.value, CatalogRefused)
