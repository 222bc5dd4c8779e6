"""A coordinator lets nobody serve a licensed release without a signed acceptance, and keeps each one as evidence."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc.aio
import pytest

from coordinator.availability import Availability
from coordinator.hosting import Hosting
from coordinator.join_tokens import create_token
from coordinator.membership import Membership
from coordinator.service import CoordinatorService, OfferedRelease
from coordinator.state import StateStore, open_state
from mesh.errors import LicenseRefused, NotFound
from mesh.layers import LayerRange
from mesh.token import JoinToken
from mesh.weights.trust.acceptance import LicenseAcceptance, sign_acceptance
from mesh.weights.trust.license_text import LicenseTexts
from mesh.weights.trust.signing import PrivateKey, sign_payload
from mesh.wire import coordinator_pb2, coordinator_pb2_grpc
from mesh.wire.channel import open_channel, server_options
from mesh.wire.protocol import VERSION
from node.accepting import Limits
from node.coordinator_client import CoordinatorClient
from tests.mesh.weights.example_manifest import CONFIG, example_full_manifest
from tests.support.clock import ManualClock
from tests.support.hosting import hosted

MANIFEST = example_full_manifest()
TEXTS = LicenseTexts(b"license", b"notice", b"policy")
LAYERS = LayerRange(0, CONFIG.num_layers)
LIMITS = Limits(1 << 40, 1 << 40, 128, 8, None, None, frozenset())


@dataclass
class Door:
    """A coordinator that serves a licensed release, as a node meets it."""

    channel: grpc.aio.Channel
    token: JoinToken
    membership: Membership
    state: StateStore
    clock: ManualClock

    def node(self, key: PrivateKey) -> CoordinatorClient:
        return CoordinatorClient(self.channel, "coordinator", node_id=key.public.key_id, incarnation=1)

    async def join(self, key: PrivateKey, record: bytes) -> None:
        node = self.node(key)
        await node.request_offer(
            token_secret=self.token.secret, name="n", kernel_id="k", limits=LIMITS, wait_seconds=0
        )
        await node.accept_offer(MANIFEST.release_id, LAYERS, 1, record)

    def serving(self) -> int:
        return len(self.membership.view(self.clock.monotonic()).nodes)

    async def audit(self) -> list[tuple[str, str]]:
        return [(line.event, line.detail) for line in await self.state.audit() if "license" in line.event]


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    membership, clock = Membership(CONFIG.num_layers), ManualClock()
    server = grpc.aio.server(options=server_options())
    async with open_state(tmp_path) as state:
        offered = OfferedRelease(MANIFEST, b"trust root", b"envelope", b"torrent", TEXTS)
        hosting = Hosting(clock)
        hosting.add(hosted(offered, membership, Availability("tiny-model", membership, clock)))
        service = CoordinatorService(hosting, state, clock)
        coordinator_pb2_grpc.add_CoordinatorServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        token = await create_token(state, b"d" * 32, "test", clock.wall())
        async with open_channel(f"127.0.0.1:{port}") as channel:
            yield Door(channel, token, membership, state, clock)
        await server.stop(None)


def record_of(key: PrivateKey, clock: ManualClock) -> bytes:
    return sign_acceptance(LicenseAcceptance.of(MANIFEST, key.public, clock.wall()), key)


async def test_an_offer_brings_every_text_that_must_be_read(door: Door) -> None:
    offered, _ = await door.node(PrivateKey.generate()).request_offer(
        token_secret=door.token.secret, name="n", kernel_id="k", limits=LIMITS, wait_seconds=0
    )
    assert offered.texts == TEXTS
    offered.texts.check(MANIFEST.license)


async def test_a_signed_acceptance_lets_in_and_is_kept_with_one_audit_line(door: Door) -> None:
    key = PrivateKey.generate()
    record = record_of(key, door.clock)
    await door.join(key, record)
    await door.join(key, record)  # the coordinator was restarted, or the answer got lost
    assert door.serving() == 1
    (kept,) = await door.state.acceptances()
    assert (kept.record, kept.acceptance.node_id) == (record, key.public.key_id)
    name = f"LicenseRef-example of release tiny-model {MANIFEST.release_id[:16]}"
    assert await door.audit() == [("license accepted", name)]


async def test_nobody_gets_in_without_one_or_with_somebody_elses(door: Door) -> None:
    key, other = PrivateKey.generate(), PrivateKey.generate()
    acceptance = LicenseAcceptance.of(MANIFEST, key.public, door.clock.wall())
    other_text = replace(MANIFEST.license, policy_digest="0" * 64)
    refused = {
        "has not accepted it": b"",
        "is not strict JSON": b"yes",
        "each node accepts for itself": record_of(other, door.clock),
        "not trusted here": sign_payload(
            acceptance.to_bytes(), "application/vnd.llama-mesh.license-acceptance+json", other
        ),
        "of other texts": sign_acceptance(replace(acceptance, license=other_text), key),
        "not " + MANIFEST.release_id[:16]: sign_acceptance(replace(acceptance, release_id="0" * 64), key),
    }
    for words, record in refused.items():
        with pytest.raises(LicenseRefused, match=words) as refusal:
            await door.join(key, record)
        assert refusal.value.exit_code == 5
    assert door.serving() == 0
    assert await door.state.acceptances() == []
    assert [event for event, _ in await door.audit()] == ["license refused"] * len(refused)


async def test_a_stranger_without_an_offer_writes_nothing_into_the_audit_trail(door: Door) -> None:
    key = PrivateKey.generate()
    with pytest.raises(NotFound):
        await door.node(key).accept_offer(MANIFEST.release_id, LAYERS, 1, b"junk")
    with pytest.raises(NotFound):
        await door.node(key).accept_offer(MANIFEST.release_id, LAYERS, 1, record_of(key, door.clock))
    assert await door.audit() == []
    assert await door.state.acceptances() == []


async def test_records_come_out_as_they_were_signed(door: Door) -> None:
    keys = [PrivateKey.generate() for _ in range(3)]
    for key in keys:
        await door.join(key, record_of(key, door.clock))
        door.clock.advance(60)
    found = await door.state.acceptances()
    assert [kept.acceptance.node_id for kept in found] == [key.public.key_id for key in keys]
    assert all(json.loads(kept.record)["payloadType"].endswith("license-acceptance+json") for kept in found)


async def test_fleet_is_told_with_each_nodes_record(door: Door) -> None:
    keys = [PrivateKey.generate() for _ in range(2)]
    records = {key.public.key_id: record_of(key, door.clock) for key in keys}
    for key in keys:
        await door.join(key, records[key.public.key_id])
    request = coordinator_pb2.FleetRequest(protocol=VERSION, token_secret=door.token.secret)
    reply = await coordinator_pb2_grpc.CoordinatorStub(door.channel).Fleet(request)
    assert {node.node_id: node.license_acceptance for node in reply.nodes} == records
