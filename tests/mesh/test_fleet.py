"""``mesh verify --fleet``: honest nodes prove, every other kind is named, and the report stands on its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from mesh.belief import Belief
from mesh.cli.main import main
from mesh.cli.verify_fleet import describe
from mesh.clock import Clock, SystemClock
from mesh.errors import IntegrityError, LicenseRefused, Temporary, Unreachable, UsageError
from mesh.fleet import FleetNode, FleetReport, NodeProof, prove_fleet, prove_node, signed_bytes
from mesh.layers import LayerRange
from mesh.swarm.metainfo import piece_layers
from mesh.token import JoinToken
from mesh.weights.shards.proof import LeafRef
from mesh.weights.trust.acceptance import LicenseAcceptance, open_acceptance, sign_acceptance
from mesh.weights.trust.manifest import Manifest, ShardRef
from mesh.weights.trust.signing import PrivateKey, PublicKey
from mesh.wire import common_pb2, coordinator_pb2, coordinator_pb2_grpc, proof_pb2, proof_pb2_grpc
from mesh.wire.channel import open_channel
from mesh.wire.protocol import VERSION
from mesh.wire.status import error_from
from node.proving import HeldShards, ProofService
from tests.support.clock import ManualClock
from tests.support.releases import PackedRelease, pack_tiny

LAYERS = LayerRange(0, 2)
NODE_KEY = PrivateKey.from_seed(b"n" * 32)
SECRET = b"s" * 16


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedRelease:
    return pack_tiny(tmp_path_factory.mktemp("packed"), num_layers=2)


def held(packed: PackedRelease, lost: str | None = None) -> HeldShards:
    release = packed.open()
    paths = {ref: release.shard_path(ref) for ref in packed.manifest.shards_for(LAYERS)}
    paths = {ref: path.with_suffix(".gone") if ref.file == lost else path for ref, path in paths.items()}
    return HeldShards(packed.manifest, paths, piece_layers(release.torrent))


@asynccontextmanager
async def serving(
    service: proof_pb2_grpc.ProofServicer, key: PrivateKey = NODE_KEY
) -> AsyncIterator[FleetNode]:
    server = grpc.aio.server()
    proof_pb2_grpc.add_ProofServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield FleetNode(key.public.key_id, "anna", LAYERS, f"127.0.0.1:{port}")
    finally:
        await server.stop(None)


async def ask(packed: PackedRelease, node: FleetNode, num_leaves: int = 16) -> NodeProof:
    return await prove_node(packed.manifest, node, num_leaves=num_leaves, clock=ManualClock())


def service(packed: PackedRelease, *, lost: str | None = None, clock: Clock | None = None) -> ProofService:
    return ProofService(NODE_KEY, held(packed, lost), clock or ManualClock())


async def test_honest_node_proves_every_shard_of_its_layers(packed: PackedRelease) -> None:
    async with serving(service(packed)) as node:
        proof = await ask(packed, node)
    assert (proof.state, proof.problem) == ("proved", None)
    asked = {finding.ref.root.hex() for finding in proof.findings}
    assert asked == {ref.root for ref in packed.manifest.shards_for(LAYERS)}


async def test_node_that_lost_a_shard_is_caught_by_that_shard(packed: PackedRelease) -> None:
    async with serving(service(packed, lost="layer-00001.safetensors")) as node:
        proof = await ask(packed, node)
    assert proof.state == "FAILED"
    assert str(proof.problem) == "it does not hold layer-00001.safetensors (not held)"


async def test_node_whose_disk_rots_is_caught(packed: PackedRelease, tmp_path: Path) -> None:
    shards = held(packed)
    for root, (ref, path) in shards._held.items():
        (tmp_path / ref.file).write_bytes(bytes(path.stat().st_size))
        shards._held[root] = (ref, tmp_path / ref.file)
    async with serving(ProofService(NODE_KEY, shards, ManualClock())) as node:
        proof = await ask(packed, node)
    assert "other bytes than were signed" in str(proof.problem)


class Replaying(proof_pb2_grpc.ProofServicer):
    """Recorded an honest answer once, and plays it ever after."""

    def __init__(self, recorded: proof_pb2.ProofAnswer) -> None:
        self._recorded = recorded

    async def Prove(self, request: Any, context: Any) -> proof_pb2.ProofAnswer:
        return self._recorded


async def test_node_that_replays_an_old_answer_is_named(packed: PackedRelease) -> None:
    challenge = [LeafRef(bytes.fromhex(packed.manifest.shards[0].root), 0)]
    async with serving(service(packed)) as node, open_channel(str(node.endpoint)) as channel:
        recorded = await proof_pb2_grpc.ProofStub(channel).Prove(wire_challenge(packed, challenge))
    async with serving(Replaying(recorded)) as node:
        proof = await ask(packed, node, num_leaves=1)
    assert isinstance(proof.problem, IntegrityError)
    assert "does not fit this challenge" in str(proof.problem)


async def test_node_with_a_foreign_key_is_named(packed: PackedRelease) -> None:
    foreign = ProofService(PrivateKey.generate(), held(packed), ManualClock())
    async with serving(foreign) as node:
        proof = await ask(packed, node)
    assert isinstance(proof.problem, IntegrityError)
    assert "a key that is not its own" in str(proof.problem)


async def test_node_that_is_gone_is_not_reached_rather_than_guilty(packed: PackedRelease) -> None:
    async with serving(service(packed)) as node:
        pass
    proof = await ask(packed, node)
    assert isinstance(proof.problem, Unreachable)
    assert proof.state == "not reached"


# -- what a node takes on


def wire_challenge(packed: PackedRelease, wanted: list[LeafRef], **fields: Any) -> proof_pb2.Challenge:
    values: dict[str, Any] = {
        "protocol": VERSION,
        "nonce": b"n" * 32,
        "release_id": packed.manifest.release_id,
        "leaves": [proof_pb2.LeafRef(root=leaf.root, index=leaf.index) for leaf in wanted],
        **fields,
    }
    return proof_pb2.Challenge(**values)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"nonce": b"short"}, "nonce"),
        ({"leaves": []}, "0 blocks"),
        ({"leaves": [proof_pb2.LeafRef()] * 33}, "33 blocks"),
        ({"protocol": 99}, "protocol"),
    ],
)
async def test_challenge_out_of_bounds_is_refused_before_any_work(
    packed: PackedRelease, fields: dict[str, Any], says: str
) -> None:
    leaves = [LeafRef(bytes(32), 0)]
    async with serving(service(packed)) as node, open_channel(str(node.endpoint)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await proof_pb2_grpc.ProofStub(channel).Prove(wire_challenge(packed, leaves, **fields))
        assert isinstance(error := error_from(refused.value), UsageError)
        assert says in str(error)
        # Nothing was spent: a right one is answered at once.
        assert await proof_pb2_grpc.ProofStub(channel).Prove(wire_challenge(packed, leaves))


async def test_node_proves_once_a_second_at_most(packed: PackedRelease) -> None:
    clock, leaves = ManualClock(), [LeafRef(bytes(32), 0)]
    async with (
        serving(service(packed, clock=clock)) as node,
        open_channel(str(node.endpoint)) as channel,
    ):
        stub = proof_pb2_grpc.ProofStub(channel)
        await stub.Prove(wire_challenge(packed, leaves))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Prove(wire_challenge(packed, leaves))
        assert isinstance(error_from(refused.value), Temporary)
        clock.advance(1.0)
        await stub.Prove(wire_challenge(packed, leaves))


# -- the whole command


class Coordinator(coordinator_pb2_grpc.CoordinatorServicer):
    def __init__(self, packed: PackedRelease, nodes: list[FleetNode]) -> None:
        self._packed, self._nodes = packed, nodes

    async def Fleet(self, request: Any, context: Any) -> coordinator_pb2.FleetReply:
        reply = coordinator_pb2.FleetReply(
            release_id=self._packed.manifest.release_id, manifest=self._packed.open().envelope
        )
        for node in self._nodes:
            message = reply.nodes.add(
                node_id=node.node_id, name=node.name, license_acceptance=node.acceptance
            )
            message.layers.CopyFrom(common_pb2.LayerRange(start=node.layers.start, stop=node.layers.stop))
            if node.endpoint is not None:
                host, _, port = node.endpoint.partition(":")
                message.stage.CopyFrom(common_pb2.Endpoint(host=host, port=int(port)))
        return reply


@asynccontextmanager
async def coordinating(packed: PackedRelease, nodes: list[FleetNode]) -> AsyncIterator[str]:
    server = grpc.aio.server()
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(Coordinator(packed, nodes), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def recheck(report: dict[str, Any]) -> None:
    """What a licensor does who has the report and nothing of ours but the description of the statement."""
    for node in report["nodes"]:
        leaves = [{name: leaf[name] for name in ("digest", "index", "root")} for leaf in node["leaves"]]
        said = {
            "leaves": leaves,
            "node_id": node["node_id"],
            "nonce": node["nonce"],
            "release_id": report["release_id"],
            "time": node["time"],
        }
        message = b"llama-mesh.proof/1\n" + json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
        key = PublicKey(bytes.fromhex(node["public_key"]))
        assert key.key_id == node["node_id"]
        assert key.has_signed(message, bytes.fromhex(node["signature"]))


async def test_command_writes_signed_evidence_that_a_licensor_can_check(
    packed: PackedRelease, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = PrivateKey.generate()
    operator.save(tmp_path / "operator.key")
    token = JoinToken(SECRET, bytes(32)).encode()
    async with (
        serving(ProofService(NODE_KEY, held(packed), SystemClock())) as node,
        coordinating(packed, [node]) as target,
    ):
        args = ["verify", "--fleet", "--coordinator", target, "--token", token]
        args += ["--trust", str(packed.trust_file), "--report", str(tmp_path / "report.json")]
        code = await asyncio.to_thread(main, [*args, "--key", str(tmp_path / "operator.key")])
    said = capsys.readouterr().out
    assert code == 0
    assert "every layer is proved by a node" in said
    file = json.loads((tmp_path / "report.json").read_bytes())
    recheck(file["report"])
    assert file["report"]["license"]["text_digest"] == packed.manifest.license.text_digest
    public = PublicKey(bytes.fromhex(file["signature"]["public_key"]))
    assert public.has_signed(signed_bytes(file["report"]), bytes.fromhex(file["signature"]["signature"]))
    file["report"]["nodes"][0]["name"] = "somebody else"
    assert not public.has_signed(signed_bytes(file["report"]), bytes.fromhex(file["signature"]["signature"]))


async def fleet(packed: PackedRelease, nodes: list[FleetNode]) -> FleetReport:
    async with coordinating(packed, nodes) as target:
        return await prove_fleet(
            target, SECRET, "", lambda _: Belief(packed.trust), num_leaves=8, clock=ManualClock()
        )


async def test_liar_outweighs_silence_and_both_are_named(packed: PackedRelease) -> None:
    silent = FleetNode("ed25519:" + "0" * 32, "silent", LAYERS, None)
    async with serving(service(packed, lost="head.safetensors")) as liar:
        report = await fleet(packed, [silent, liar])
    assert type(report.verdict()) is IntegrityError
    assert "silent: it does not serve yet; anna: it does not hold head" in str(report.verdict())
    assert report.unproved_layers == (0, 1)
    assert type((await fleet(packed, [silent])).verdict()) is Unreachable
    assert type((await fleet(packed, [])).verdict()) is Unreachable


@pytest.fixture(scope="module")
def licensed(tmp_path_factory: pytest.TempPathFactory) -> PackedRelease:
    return pack_tiny(
        tmp_path_factory.mktemp("licensed"),
        num_layers=2,
        license_id="LicenseRef-Tiny",
        license_text=b"be kind",
    )


def acceptance(packed: PackedRelease, key: PrivateKey = NODE_KEY) -> bytes:
    return sign_acceptance(LicenseAcceptance.of(packed.manifest, key.public, 1e9), key)


async def fleet_with(licensed: PackedRelease, record: bytes) -> FleetReport:
    async with serving(service(licensed)) as node:
        return await fleet(licensed, [replace(node, acceptance=record)])


async def test_report_carries_the_acceptance_that_the_node_signed(licensed: PackedRelease) -> None:
    report = await fleet_with(licensed, record := acceptance(licensed))
    assert report.verdict() is None
    said = json.loads(report.signed(None))["report"]["nodes"][0]["license_acceptance"]
    assert said["accepted"] == "2001-09-09T01:46:40Z"
    again = open_acceptance(json.dumps(said["record"]).encode())  # what a licensor does with it
    assert again == open_acceptance(record)
    assert "accepted LicenseRef-Tiny 2001-09-09T01:46:40Z" in describe(report)


async def test_node_without_an_acceptance_fails_although_it_proves_the_bytes(licensed: PackedRelease) -> None:
    report = await fleet_with(licensed, b"")
    assert type(report.verdict()) is LicenseRefused
    assert "anna: no acceptance of LicenseRef-Tiny is on record" in str(report.verdict())
    assert (report.proofs[0].problem, report.proofs[0].state) == (None, "FAILED")
    assert report.unproved_layers == ()


async def test_acceptance_of_somebody_else_or_of_another_release_is_none(
    licensed: PackedRelease, packed: PackedRelease
) -> None:
    for record in (acceptance(licensed, PrivateKey.generate()), acceptance(packed)):
        report = await fleet_with(licensed, record)
        assert type(report.verdict()) is LicenseRefused
        assert json.loads(report.signed(None))["report"]["nodes"][0]["license_acceptance"] is None


async def test_acceptance_that_the_coordinator_wrote_itself_is_a_lie(licensed: PackedRelease) -> None:
    forged = json.loads(acceptance(licensed))
    forged["signatures"] = json.loads(acceptance(licensed, PrivateKey.generate()))["signatures"]
    report = await fleet_with(licensed, json.dumps(forged).encode())
    assert isinstance(report.verdict(), IntegrityError)


async def test_what_was_revoked_is_no_fleet_to_show_a_licensor(packed: PackedRelease) -> None:
    def revoked(manifest: Manifest, shards: Sequence[ShardRef]) -> str:
        raise LicenseRefused(f"release {manifest.name} was revoked")

    async with serving(service(packed)) as node, coordinating(packed, [node]) as target:
        report = await prove_fleet(
            target,
            SECRET,
            "",
            lambda _: Belief(packed.trust, said="publisher acme", revocation=revoked),
            num_leaves=8,
            clock=ManualClock(),
        )
    assert type(report.verdict()) is LicenseRefused
    said = report.to_json()
    assert (said["catalog"], said["revocation"]["problem"]) == ("publisher acme", "release tiny was revoked")


async def test_coordinators_manifest_must_be_signed_by_whom_the_operator_trusts(
    packed: PackedRelease, tmp_path: Path
) -> None:
    stranger = pack_tiny(tmp_path, num_layers=2)
    async with coordinating(stranger, []) as target:
        with pytest.raises(IntegrityError):
            await prove_fleet(
                target, SECRET, "", lambda _: Belief(packed.trust), num_leaves=8, clock=ManualClock()
            )


def test_without_a_coordinator_there_is_nobody_to_ask(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--fleet"]) == 2
    assert "--coordinator" in capsys.readouterr().err
    assert main(["verify", "--fleet", "--deep"]) == 2
    assert "--deep: only for a release on this machine" in capsys.readouterr().err
    assert main(["verify", "x", "--report", "y"]) == 2
    assert "--report: only for --fleet" in capsys.readouterr().err
    assert main(["verify"]) == 2
    assert "which release?" in capsys.readouterr().err
