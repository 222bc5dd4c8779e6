"""The tracker for standard clients: what it answers, what it refuses, and a plain libtorrent that fetches through it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote_from_bytes

import libtorrent as lt
import pytest
from fastapi import FastAPI

from coordinator.api.tracker_route import tracker_routes
from coordinator.join_tokens import TokenRecord, admit, create_passkey
from coordinator.membership import MAX_ANNOUNCED, Membership
from coordinator.servers import serving_clients
from coordinator.tracker import BURST, EXPIRY_SECONDS, Tracker
from mesh.clock import Clock, SystemClock
from mesh.errors import NotAuthorised
from mesh.swarm.fetching import fetch
from mesh.swarm.session import SwarmSession
from mesh.swarm.tracker_messages import TrackerRefusal, parse_announce
from mesh.weights.trust.signing import PrivateKey, sign_manifest
from tests.support.clock import ManualClock
from tests.support.seeders import SIZES, assert_equal, seeding
from tests.support.synthetic_release import SyntheticRelease, write_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRelease:
    return write_release(tmp_path_factory.mktemp("release"), SIZES)


@dataclass
class World:
    """A tracker for one release, with a store of tokens in memory."""

    release: SyntheticRelease
    clock: Clock = field(default_factory=ManualClock)
    records: list[TokenRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.membership = Membership(4)
        self.tracked = [(sign_manifest(self.release.manifest, PrivateKey.generate()), self.membership)]
        self.tracker = Tracker(self, self, self.clock)

    async def tokens(self) -> list[TokenRecord]:
        return self.records

    async def add_token(self, record: TokenRecord) -> None:
        self.records.append(record)

    def query(self, port: int = 6881, peer: bytes = b"p" * 20, more: str = "", name: bytes = b"") -> bytes:
        infohash = name or bytes.fromhex(self.release.manifest.torrent.infohash)[:20]
        text = f"info_hash={quote_from_bytes(infohash)}&peer_id={quote_from_bytes(peer)}&port={port}{more}"
        return text.encode()

    async def ask(self, passkey: str, query: bytes, host: str = "192.0.2.7") -> dict[bytes, object]:
        answer = lt.bdecode(await self.tracker.announce(passkey, host, query))
        assert isinstance(answer, dict)
        return answer


@pytest.fixture
def world(release: SyntheticRelease) -> World:
    return World(release)


async def test_peers_of_the_mesh_and_of_the_tracker_are_one_list(world: World) -> None:
    passkey = await create_passkey(world, "", world.clock.wall())
    world.membership.announce("seeder", ("192.0.2.1", 7001), world.clock.monotonic())
    world.membership.announce("six", ("2001:db8::1", 7002), world.clock.monotonic())

    answer = await world.ask(passkey, world.query())

    assert answer[b"peers"] == bytes([192, 0, 2, 1]) + (7001).to_bytes(2, "big")
    assert bytes(answer[b"peers6"])[-2:] == (7002).to_bytes(2, "big")
    assert answer[b"interval"] == 60
    told = world.membership.peers(world.clock.monotonic(), excluding="node")
    assert ("192.0.2.7", 6881) in told
    plain = await world.ask(passkey, world.query(more="&compact=0&numwant=1"))
    assert plain[b"peers"] == [{b"ip": b"192.0.2.1", b"port": 7001}]

    await world.ask(passkey, world.query(more="&event=stopped"))
    assert ("192.0.2.7", 6881) not in world.membership.peers(world.clock.monotonic(), excluding="node")


async def test_a_peer_is_forgotten_when_it_stops_announcing(world: World) -> None:
    assert isinstance(world.clock, ManualClock)
    passkey = await create_passkey(world, "", world.clock.wall())
    await world.ask(passkey, world.query())
    world.clock.advance(EXPIRY_SECONDS - 1)
    assert world.membership.peers(world.clock.monotonic(), excluding="")
    world.clock.advance(2)
    assert world.membership.peers(world.clock.monotonic(), excluding="") == []


async def test_refusals_say_why_and_keep_nothing(world: World) -> None:
    assert isinstance(world.clock, ManualClock)
    passkey = await create_passkey(world, "tv", world.clock.wall())

    async def reason(key: str, query: bytes) -> bytes:
        return bytes((await world.ask(key, query))[b"failure reason"])

    assert b"not whole" in await reason("../etc", world.query())
    assert b"not known" in await reason("0" * 40, world.query())
    assert b"not of a release" in await reason(passkey, world.query(name=b"x" * 20))
    assert b"port" in await reason(passkey, world.query(port=0))
    world.records[:] = [
        TokenRecord(each.digest, each.label, each.created, None, revoked=1.0) for each in world.records
    ]
    world.clock.advance(2)
    assert b"revoked" in await reason(passkey, world.query())
    assert world.membership.peers(world.clock.monotonic(), excluding="") == []


async def test_who_asks_too_often_is_told_and_others_are_not(world: World) -> None:
    passkey = await create_passkey(world, "", world.clock.wall())
    answers = [await world.ask(passkey, world.query()) for _ in range(BURST + 1)]

    assert [b"failure reason" in answer for answer in answers] == [False] * BURST + [True]
    assert b"failure reason" not in await world.ask(passkey, world.query(), host="192.0.2.8")


async def test_announced_peers_are_bounded(world: World) -> None:
    passkey = await create_passkey(world, "", world.clock.wall())
    for index in range(MAX_ANNOUNCED):
        world.membership.announce(str(index), ("192.0.2.1", 1), world.clock.monotonic())

    answer = await world.ask(passkey, world.query())

    assert b"try again later" in bytes(answer[b"failure reason"])
    assert answer[b"retry in"] == 1


async def test_nobody_joins_with_a_passkey(world: World) -> None:
    passkey = await create_passkey(world, "", world.clock.wall())
    with pytest.raises(NotAuthorised, match="not known"):
        admit(world.records, bytes.fromhex(passkey), world.clock.wall())


@pytest.mark.parametrize(
    "query",
    [
        b"",
        b"\xff",
        b"a" * 5000,
        b"info_hash=short",
        b"&".join([b"info_hash=" + b"a" * 20] * 2),
        b"event=\x00",
    ],
)
def test_queries_out_of_bounds_are_refused(query: bytes) -> None:
    with pytest.raises(TrackerRefusal):
        parse_announce(query)


async def test_plain_libtorrent_fetches_a_private_release_and_seeds_it_to_a_node(
    release: SyntheticRelease, tmp_path: Path
) -> None:
    assert release.manifest.torrent.private
    world = World(release, SystemClock())
    passkey = await create_passkey(world, "", world.clock.wall())
    app = FastAPI()
    app.include_router(tracker_routes(world.tracker))

    async def nothing() -> None:
        pass

    async with serving_clients(("127.0.0.1", 0), app, nothing) as ((host, port), _):
        client = lt.session(
            {
                "listen_interfaces": "127.0.0.1:0",
                "enable_dht": False,
                "allow_multiple_connections_per_ip": True,
            }
        )
        params = lt.load_torrent_buffer(release.torrent)
        params.save_path = str(tmp_path / "client")
        params.trackers = [f"http://{host}:{port}/announce/{passkey}"]
        async with seeding(release) as seeder:
            world.membership.announce("seeder", seeder.endpoint, world.clock.monotonic(), 60)
            handle = client.add_torrent(params)
            await asyncio.to_thread(wait_until_seeding, handle)
            world.membership.withdraw_peer("seeder")

        # Our seeder is gone; a node learns of the client from the same list.
        async with SwarmSession() as node:
            peers = world.membership.peers(world.clock.monotonic(), excluding="")
            assert peers == [("127.0.0.1", client.listen_port())]
            report = await fetch(
                node,
                release.torrent,
                release.manifest,
                release.manifest.shards,
                tmp_path / "node",
                lambda: peers,
            )
            assert_equal(report, release)


def wait_until_seeding(handle: lt.torrent_handle) -> None:
    import time

    deadline = time.monotonic() + 20
    while not handle.status().is_seeding:
        assert time.monotonic() < deadline, handle.status().state
        time.sleep(0.05)
