"""The Coordinator service over real gRPC on this machine; the clock is the test's."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from coordinator.availability import Availability
from coordinator.hosting import Hosting
from coordinator.join_tokens import create_token
from coordinator.membership import Membership
from coordinator.service import CoordinatorService, OfferedRelease
from coordinator.state import StateStore, open_state
from coordinator.topology import NodeState
from mesh.architecture import LlamaConfig, RopeConfig
from mesh.errors import (
    MeshError,
    NotAuthorised,
    NotEnoughMemory,
    NotFound,
    RequestRefused,
    Temporary,
    UsageError,
)
from mesh.layers import LayerRange
from mesh.model.memory import plan_stage
from mesh.weights.trust.license_text import LicenseTexts
from mesh.wire import common_pb2, coordinator_pb2, coordinator_pb2_grpc
from mesh.wire.channel import open_channel, server_options
from mesh.wire.protocol import VERSION
from mesh.wire.status import error_from
from tests.mesh.weights.example_manifest import example_manifest
from tests.support.clock import ManualClock
from tests.support.hosting import hosted

CONFIG = LlamaConfig(
    hidden_size=64,
    intermediate_size=96,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=300,
    context_length=512,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    tied=False,
    bos_token_id=None,
    eos_token_ids=(),
)
MANIFEST = example_manifest("tiny", CONFIG)
RELEASE = OfferedRelease(MANIFEST, b"trust root", b"envelope", b"torrent", LicenseTexts(b"license"))
KV_TOKENS = 128
PLENTY = 1 << 40  # bytes
HALF = max(plan_stage(CONFIG, LayerRange(start, start + 2), KV_TOKENS).total_bytes for start in (0, 2))


@dataclass
class Client:
    """Speaks as nodes and seeders do; every refusal comes out as the error that the other side raised."""

    stub: Any
    secret: bytes

    async def call(self, method: str, request: Any) -> Any:
        try:
            return await getattr(self.stub, method)(request, timeout=10)
        except grpc.aio.AioRpcError as exc:
            raise error_from(exc) from exc

    async def ask(
        self,
        node: str,
        *,
        memory: int = PLENTY,
        layers: str | None = None,
        incarnation: int = 1,
        **fields: Any,
    ) -> coordinator_pb2.Offer:
        capacity = coordinator_pb2.Capacity(memory_bytes=memory, disk_bytes=PLENTY)
        if layers is not None:
            capacity.layers.CopyFrom(wire(layers))
        request = coordinator_pb2.OfferRequest(
            protocol=VERSION,
            version="0.1.0",
            token_secret=self.secret,
            node_id=node,
            name=node,
            incarnation=incarnation,
            capacity=capacity,
            kernel_id="kernel",
            kv_tokens=KV_TOKENS,
        )
        for name, value in fields.items():
            setattr(request, name, value)
        return await self.call("RequestOffer", request)

    async def accept(self, node: str, layers: str, *, incarnation: int = 1) -> coordinator_pb2.Lease:
        return await self.call(
            "AcceptOffer",
            coordinator_pb2.Acceptance(
                node_id=node,
                incarnation=incarnation,
                release_id=RELEASE.release_id,
                layers=wire(layers),
                memory_bytes=1,
            ),
        )

    async def beat(
        self, node: str, state: int, *, port: int = 7000, host: str = "127.0.0.1", incarnation: int = 1
    ) -> coordinator_pb2.Lease:
        request = coordinator_pb2.HeartbeatRequest(
            node_id=node,
            incarnation=incarnation,
            state=state,  # type: ignore[arg-type]
            stage=common_pb2.Endpoint(host=host, port=port),
            swarm=common_pb2.Endpoint(host=host, port=port + 1),
            kv_tokens_free=KV_TOKENS,
        )
        return await self.call("Heartbeat", request)

    async def serve(self, node: str, layers: str, *, port: int = 7000) -> None:
        await self.ask(node, layers=layers)
        await self.accept(node, layers)
        await self.beat(node, coordinator_pb2.READY, port=port)

    async def announce(self, peer: str, port: int, **fields: Any) -> coordinator_pb2.AnnounceReply:
        request = coordinator_pb2.AnnounceRequest(
            protocol=VERSION,
            token_secret=self.secret,
            release_id=RELEASE.release_id,
            swarm=common_pb2.Endpoint(host="127.0.0.1", port=port),
            peer_id=peer,
        )
        for name, value in fields.items():
            setattr(request, name, value)
        return await self.call("Announce", request)


def wire(layers: str) -> common_pb2.LayerRange:
    parsed = LayerRange.parse(layers)
    return common_pb2.LayerRange(start=parsed.start, stop=parsed.stop)


def text(layers: common_pb2.LayerRange) -> str:
    return f"{layers.start}:{layers.stop}"


def ports(peers: Any) -> list[int]:
    return [peer.port for peer in peers]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def membership() -> Membership:
    return Membership(CONFIG.num_layers)


@pytest.fixture
def availability(membership: Membership, clock: ManualClock) -> Availability:
    return Availability("tiny", membership, clock)


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[StateStore]:
    async with open_state(tmp_path) as opened:
        yield opened


@pytest.fixture
async def client(
    state: StateStore, membership: Membership, availability: Availability, clock: ManualClock
) -> AsyncIterator[Client]:
    hosting = Hosting(clock)
    hosting.add(hosted(RELEASE, membership, availability))
    server = grpc.aio.server(options=server_options())
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(CoordinatorService(hosting, state, clock), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    token = await create_token(state, b"d" * 32, "test", clock.wall())
    async with open_channel(f"127.0.0.1:{port}") as channel:
        yield Client(coordinator_pb2_grpc.CoordinatorStub(channel), token.secret)  # type: ignore[no-untyped-call]
    await server.stop(None)


# -- the story


async def test_nodes_that_join_one_after_the_other_make_a_route(
    client: Client, availability: Availability
) -> None:
    for node, layers, port, missing in (("a", "0:2", 1000, "0:4"), ("b", "2:4", 2000, "2:4")):
        with pytest.raises(RequestRefused, match=f"nobody serves layers {missing};") as refused:
            availability.find_route()
        assert (refused.value.status, refused.value.code) == (503, "mesh_incomplete")
        offer = await client.ask(node, memory=HALF)
        assert text(offer.layers) == layers
        await client.accept(node, layers)
        await client.beat(node, coordinator_pb2.FETCHING, port=port)
        await client.beat(node, coordinator_pb2.LOADING, port=port)
        await client.beat(node, coordinator_pb2.READY, port=port)
    assert str(availability.find_route()) == "0:2 a → 2:4 b"
    assert [stage.port for stage in availability.find_route().stages] == [1000, 2000]
    assert availability.is_ready


async def test_an_offer_carries_what_was_published_byte_for_byte(client: Client) -> None:
    offer = await client.ask("a")
    assert (offer.release_id, offer.trust_root, offer.manifest, offer.torrent) == (
        RELEASE.release_id,
        RELEASE.trust_root,
        RELEASE.envelope,
        RELEASE.torrent,
    )
    assert text(offer.layers) == "0:4"


async def test_a_silent_node_is_lost_and_its_layers_are_offered_to_the_next(
    client: Client, clock: ManualClock, membership: Membership, availability: Availability
) -> None:
    await client.serve("a", "0:4")
    clock.advance(membership.lease_seconds)
    with pytest.raises(RequestRefused, match="0:4"):
        availability.find_route()
    assert not availability.is_ready
    assert text((await client.ask("b")).layers) == "0:4"
    with pytest.raises(NotFound, match="join again"):
        await client.beat("a", coordinator_pb2.READY)


async def test_the_audit_trail_tells_who_came_and_went(client: Client, state: StateStore) -> None:
    await client.serve("a", "0:4")
    await client.call("Leave", coordinator_pb2.LeaveRequest(node_id="a", incarnation=1))
    events = [record.event for record in await state.audit()]
    assert events == ["token created", "node joined", "node ready", "node left"]


async def test_a_goodbye_of_a_stranger_is_no_error(client: Client, state: StateStore) -> None:
    await client.call("Leave", coordinator_pb2.LeaveRequest(node_id="nobody", incarnation=1))
    assert [record.event for record in await state.audit()] == ["token created"]


async def test_the_slower_of_two_joiners_is_told_to_ask_again_and_gets_the_rest(client: Client) -> None:
    for node in ("a", "b"):
        assert text((await client.ask(node, memory=HALF)).layers) == "0:2"
    await client.accept("a", "0:2")
    with pytest.raises(Temporary, match="ask again"):
        await client.accept("b", "0:2")
    assert text((await client.ask("b", memory=HALF)).layers) == "2:4"
    await client.accept("b", "2:4")


async def test_a_node_that_asks_again_is_not_in_its_own_way(client: Client) -> None:
    await client.serve("a", "0:4")
    assert text((await client.ask("a", incarnation=2)).layers) == "0:4"
    await client.accept("a", "0:4", incarnation=2)


# -- the swarm


async def test_everybody_learns_of_the_peers_but_not_of_themselves(client: Client) -> None:
    assert ports((await client.announce("seeder", 3000)).peers) == []
    assert ports((await client.ask("a", layers="0:2")).peers) == [3000]
    assert ports((await client.accept("a", "0:2")).peers) == [3000]
    assert ports((await client.beat("a", coordinator_pb2.FETCHING, port=1000)).peers) == [3000]
    assert ports((await client.ask("b")).peers) == [3000, 1001]
    assert ports((await client.announce("seeder", 3000)).peers) == [1001]


async def test_a_seeder_that_falls_silent_is_forgotten(client: Client, clock: ManualClock) -> None:
    reply = await client.announce("seeder", 3000)
    clock.advance(reply.seconds)
    assert ports((await client.ask("a")).peers) == []


async def test_who_listens_on_every_interface_is_dialled_where_the_call_came_from(
    client: Client, availability: Availability
) -> None:
    await client.ask("a")
    await client.accept("a", "0:4")
    await client.beat("a", coordinator_pb2.READY, host="0.0.0.0", port=1000)
    (stage,) = availability.find_route().stages
    assert (stage.host, stage.port) == ("127.0.0.1", 1000)


async def test_a_seeder_of_another_release_is_told_which_one_is_served(client: Client) -> None:
    with pytest.raises(NotFound, match=f"this coordinator serves {RELEASE.release_id[:8]}"):
        await client.announce("seeder", 3000, release_id="cd" * 32)
    assert ports((await client.ask("a")).peers) == []


# -- refusals


@pytest.mark.parametrize("method", ["ask", "announce"])
async def test_a_secret_that_is_not_a_token_lets_nobody_in(
    client: Client, membership: Membership, clock: ManualClock, method: str
) -> None:
    client.secret = b"x" * 16
    with pytest.raises(NotAuthorised, match="ask the operator"):
        await (client.ask("a") if method == "ask" else client.announce("seeder", 3000))
    assert membership.peers(clock.monotonic(), excluding="") == []


async def test_a_revoked_token_lets_nobody_in(client: Client, state: StateStore, clock: ManualClock) -> None:
    (record,) = await state.tokens()
    await state.revoke_token(record.token_id, clock.wall())
    with pytest.raises(NotAuthorised, match="was revoked"):
        await client.ask("a")


async def test_an_expired_token_lets_nobody_in(client: Client, state: StateStore, clock: ManualClock) -> None:
    client.secret = (await create_token(state, b"d" * 32, "", clock.wall(), clock.wall() + 60)).secret
    await client.ask("a")
    clock.advance(60)
    with pytest.raises(NotAuthorised, match="has expired"):
        await client.ask("a")


async def test_without_an_offer_nobody_takes_layers(client: Client, state: StateStore) -> None:
    # The token is shown for the offer; who never got one has never shown a token.
    with pytest.raises(NotFound):
        await client.accept("a", "0:4")
    assert [record.event for record in await state.audit()] == ["token created"]


async def test_another_protocol_version_is_refused_naming_both(client: Client) -> None:
    with pytest.raises(
        UsageError, match=rf"protocol {VERSION + 1} \(llama-mesh 0\.1\.0\).* speaks {VERSION} "
    ):
        await client.ask("a", protocol=VERSION + 1)


async def test_a_node_that_fits_no_layer_is_told_so_with_the_right_exit_code(client: Client) -> None:
    with pytest.raises(NotEnoughMemory) as refused:
        await client.ask("a", memory=1)
    assert refused.value.exit_code == 7


async def test_layers_outside_of_the_model_are_a_usage_error(client: Client) -> None:
    with pytest.raises(UsageError, match="--layers 2:9: the model has layers 0:4"):
        await client.ask("a", layers="2:9")


@pytest.mark.parametrize(
    "field",
    [
        {"node_id": ""},
        {"node_id": "n" * 101},
        {"name": "a\nb"},
        {"name": "\x1b[2J"},
        {"name": "n" * 65},
        {"kernel_id": ""},
        {"version": "v" * 101},
        {"incarnation": 0},
        {"kv_tokens": 0},
    ],
    ids=str,
)
async def test_a_field_out_of_bounds_is_refused_on_one_line(client: Client, field: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refused:
        await client.ask(**{"node": "a", **field})
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(("host", "port"), [("", 1), ("h" * 254, 1), ("a b\n", 1), ("127.0.0.1", 0)])
async def test_an_endpoint_that_nobody_could_dial_is_refused_and_changes_nothing(
    client: Client, membership: Membership, clock: ManualClock, host: str, port: int
) -> None:
    await client.ask("a")
    await client.accept("a", "0:4")
    with pytest.raises(UsageError):
        await client.beat("a", coordinator_pb2.READY, host=host, port=port)
    (node,) = membership.view(clock.monotonic()).nodes
    assert node.state is NodeState.FETCHING


async def test_a_state_that_is_none_is_refused(client: Client) -> None:
    await client.ask("a")
    await client.accept("a", "0:4")
    for state in (0, 17):
        with pytest.raises(MeshError):
            await client.beat("a", state)


def test_while_stopping_no_request_finds_a_route(availability: Availability) -> None:
    availability.stop()
    with pytest.raises(RequestRefused, match="stopping"):
        availability.find_route()


# -- releases for whoever wants only the files


@pytest.mark.parametrize("release", ["", "tiny", RELEASE.release_id])
async def test_release_is_given_to_whoever_has_a_token_and_reserves_nothing(
    client: Client, membership: Membership, clock: ManualClock, release: str
) -> None:
    await client.announce("seeder", 7777)

    request = coordinator_pb2.ReleaseRequest(protocol=VERSION, token_secret=client.secret, release=release)
    reply = await client.call("GetRelease", request)

    assert (reply.manifest, reply.torrent, reply.license_text) == (b"envelope", b"torrent", b"license")
    assert reply.trust_root == b"trust root"
    assert ports(reply.peers) == [7777]
    assert not membership.view(clock.monotonic()).nodes


async def test_release_needs_a_token_and_a_name_that_is_served(client: Client) -> None:
    stranger = coordinator_pb2.ReleaseRequest(protocol=VERSION, token_secret=b"x" * 16)
    with pytest.raises(NotAuthorised):
        await client.call("GetRelease", stranger)
    other = coordinator_pb2.ReleaseRequest(protocol=VERSION, token_secret=client.secret, release="other")
    with pytest.raises(NotFound, match="not served here"):
        await client.call("GetRelease", other)


async def test_fleet_names_whom_to_ask_for_proof_and_needs_a_token(client: Client) -> None:
    await client.serve("a", "0:2", port=1000)
    await client.ask("b", layers="2:4")
    await client.accept("b", "2:4")
    reply = await client.call(
        "Fleet", coordinator_pb2.FleetRequest(protocol=VERSION, token_secret=client.secret)
    )
    assert (reply.release_id, reply.manifest) == (RELEASE.release_id, RELEASE.envelope)
    assert [(node.node_id, text(node.layers), node.HasField("stage")) for node in reply.nodes] == [
        ("a", "0:2", True),
        ("b", "2:4", False),
    ]
    assert reply.nodes[0].stage.port == 1000
    with pytest.raises(NotAuthorised):
        await client.call("Fleet", coordinator_pb2.FleetRequest(protocol=VERSION, token_secret=b"x" * 16))
