"""Ask every node of a mesh for proof that it holds the licensed bytes now, and say what came back.

The coordinator is believed in nothing but where to ask: the manifest is verified with the operator's own trust, a node's
proof is signed by its own key, and so is the record of its accepting the licence. The report carries each challenge,
signature and record, so that whoever is given it can check it again without us (``mesh/weights/shards/proof.py`` and
``mesh/weights/trust/acceptance.py`` say over which bytes).

Knows the Fleet and Proof calls and the report. Knows nothing of command lines.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc.aio

from mesh import strict_json
from mesh.belief import Belief, Believer
from mesh.clock import Clock
from mesh.errors import IntegrityError, LicenseRefused, MeshError, Temporary, Unreachable
from mesh.layers import LayerRange
from mesh.weights.shards.proof import (
    MAX_LEAVES,
    NONCE_BYTES,
    Answer,
    Challenge,
    Leaf,
    LeafFinding,
    LeafRef,
    check_answer,
    num_blocks,
)
from mesh.weights.trust.acceptance import MAX_ACCEPTANCE_BYTES, LicenseAcceptance, open_acceptance
from mesh.weights.trust.manifest import Manifest, ShardRef
from mesh.weights.trust.signing import PrivateKey, open_manifest
from mesh.wire import coordinator_pb2, coordinator_pb2_grpc, proof_pb2, proof_pb2_grpc
from mesh.wire.channel import format_endpoint, open_channel
from mesh.wire.protocol import VERSION
from mesh.wire.status import error_from

SCHEMA = "llama-mesh.fleet-report/1"
CALL_SECONDS = 30.0
RETRIES = 3  # a node that was just asked by somebody else
RETRY_SECONDS = 1.2
NODES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class FleetNode:
    """What the coordinator says of a node; only ``endpoint`` is relied on."""

    node_id: str
    name: str
    layers: LayerRange
    endpoint: str | None  # HOST:PORT of its stage; None: it serves nothing yet
    acceptance: bytes = b""  # the record that the coordinator has of it, if any


@dataclass(frozen=True, slots=True)
class NodeProof:
    """What one node proved. ``problem`` is None if every block that was asked for is the licensed one, ``license_problem``
    if its acceptance is on record or none is needed."""

    node: FleetNode
    challenge: Challenge
    asked_at: str
    answer: Answer | None
    findings: tuple[LeafFinding, ...]
    problem: MeshError | None
    accepted: LicenseAcceptance | None = None
    license_problem: MeshError | None = None

    @property
    def problems(self) -> tuple[MeshError, ...]:
        return tuple(problem for problem in (self.problem, self.license_problem) if problem is not None)

    @property
    def state(self) -> str:
        if not self.problems:
            return "proved"
        unreached = all(isinstance(problem, Unreachable | Temporary) for problem in self.problems)
        return "not reached" if unreached else "FAILED"


@dataclass(frozen=True, slots=True)
class FleetReport:
    manifest: Manifest
    coordinator: str
    created: str
    proofs: tuple[NodeProof, ...]
    catalog: str | None = None  # what it says of who publishes this
    revocation: str | None = None  # what its list says; None: nobody asked
    revocation_problem: MeshError | None = None

    @property
    def unproved_layers(self) -> tuple[int, ...]:
        proved = [proof.node.layers for proof in self.proofs if proof.problem is None]
        return tuple(
            layer
            for layer in range(self.manifest.config.num_layers)
            if not any(layer in layers for layers in proved)
        )

    def verdict(self) -> MeshError | None:
        """One error that names every node that failed: a lie outweighs a broken rule, and that outweighs silence."""
        failed = [proof for proof in self.proofs if proof.problems]
        problems = [problem for proof in failed for problem in proof.problems]
        parts = []
        if self.revocation_problem is not None:
            problems.append(self.revocation_problem)
            parts.append(str(self.revocation_problem))
        if failed:
            text = "; ".join(
                f"{proof.node.name}: {problem}" for proof in failed for problem in proof.problems
            )
            parts.append(f"{len(failed)} of {len(self.proofs)} nodes failed: {text}")
        if not self.proofs:
            problems.append(Unreachable("no node is in this mesh; nobody can be asked"))
            parts.append(str(problems[-1]))
        if not problems:
            return None
        if all(isinstance(problem, Unreachable | Temporary) for problem in problems):
            return Unreachable("; ".join(parts))
        is_lie = any(not isinstance(p, Unreachable | Temporary | LicenseRefused) for p in problems)
        return (IntegrityError if is_lie else LicenseRefused)("; ".join(parts))

    def to_json(self) -> dict[str, Any]:
        license_ = self.manifest.license
        files = {bytes.fromhex(ref.root): ref.file for ref in self.manifest.shards}
        return {
            "schema": SCHEMA,
            "created": self.created,
            "coordinator": self.coordinator,
            "release_id": self.manifest.release_id,
            "name": self.manifest.name,
            "license": {
                "id": license_.id,
                "text_digest": license_.text_digest,
                "acceptance_required": license_.acceptance_required,
            },
            "catalog": self.catalog,
            "revocation": {
                "detail": self.revocation,
                "problem": str(self.revocation_problem) if self.revocation_problem is not None else None,
            },
            "unproved_layers": list(self.unproved_layers),
            "nodes": [_node_json(proof, files) for proof in self.proofs],
        }

    def signed(self, key: PrivateKey | None) -> bytes:
        """The report as a file: canonical JSON, with the operator's signature over ``report`` if there is a key.

        What is signed is the schema, a newline and the canonical JSON of ``report``.
        """
        value: dict[str, Any] = {"report": self.to_json()}
        if key is not None:
            signature = key.sign(signed_bytes(value["report"]))
            value["signature"] = {
                "key_id": key.public.key_id,
                "public_key": key.public.raw.hex(),
                "signature": signature.hex(),
            }
        return strict_json.dumps(value) + b"\n"


def signed_bytes(report: Mapping[str, Any]) -> bytes:
    return SCHEMA.encode() + b"\n" + strict_json.dumps(report)


async def prove_fleet(
    target: str, token_secret: bytes, release: str, believe: Believer, *, num_leaves: int, clock: Clock
) -> FleetReport:
    """Ask the coordinator at ``target`` who serves, and each of them for ``num_leaves`` random blocks of its shards.

    A node that fails is in the report, and so is a revocation. Raises whatever the coordinator refuses with, and
    IntegrityError or NotFound if its manifest is not one that is believed.
    """
    async with open_channel(target) as channel:
        request = coordinator_pb2.FleetRequest(protocol=VERSION, token_secret=token_secret, release=release)
        stub: Any = coordinator_pb2_grpc.CoordinatorStub(channel)
        try:
            reply = await stub.Fleet(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as exc:
            raise error_from(exc) from exc
    belief = await asyncio.to_thread(believe, reply.manifest)
    manifest = open_manifest(belief.envelope or reply.manifest, belief.trust)
    revocation, revocation_problem = await asyncio.to_thread(_look_for_revocation, belief, manifest)
    turn = asyncio.Semaphore(NODES_AT_ONCE)

    async def prove(node: FleetNode) -> NodeProof:
        async with turn:
            return await prove_node(manifest, node, num_leaves=num_leaves, clock=clock)

    proofs = await asyncio.gather(*(prove(_node(message)) for message in reply.nodes))
    return FleetReport(
        manifest, target, _time(clock.wall()), tuple(proofs), belief.said, revocation, revocation_problem
    )


async def prove_node(manifest: Manifest, node: FleetNode, *, num_leaves: int, clock: Clock) -> NodeProof:
    """One node's answer, checked; whatever is wrong with it is in the result."""
    challenge = draw_challenge(manifest, node.layers, num_leaves)
    asked_at, answer = _time(clock.wall()), None
    findings: tuple[LeafFinding, ...] = ()
    try:
        if node.endpoint is None:
            raise Unreachable("it does not serve yet")
        answer = await _ask(node.endpoint, challenge)
        findings = check_answer(
            challenge, answer, node.node_id, {bytes.fromhex(ref.root): ref for ref in manifest.shards}
        )
        problem = _problem_of(findings, manifest)
    except MeshError as exc:
        problem = exc
    accepted, license_problem = _check_acceptance(manifest, node)
    return NodeProof(node, challenge, asked_at, answer, findings, problem, accepted, license_problem)


def _check_acceptance(
    manifest: Manifest, node: FleetNode
) -> tuple[LicenseAcceptance | None, MeshError | None]:
    """The node's own signed word on this release and its texts; a record that is there must be right."""
    if not node.acceptance:
        if not manifest.license.acceptance_required:
            return None, None
        return None, LicenseRefused(
            f"no acceptance of {manifest.license.id} is on record; it must join again"
        )
    try:
        accepted = open_acceptance(node.acceptance)
        accepted.check_for(manifest, node.node_id)
    except MeshError as exc:
        return None, exc
    return accepted, None


def _look_for_revocation(belief: Belief, manifest: Manifest) -> tuple[str | None, MeshError | None]:
    if belief.revocation is None:
        return None, None
    try:
        return belief.revocation(manifest, manifest.shards), None
    except MeshError as exc:
        return None, exc


def draw_challenge(manifest: Manifest, layers: LayerRange, num_leaves: int) -> Challenge:
    """Blocks that nobody can guess: shards in turn, in random order, each time a random block."""
    draw = random.SystemRandom()
    shards: list[ShardRef] = list(manifest.shards_for(layers))
    if not shards:
        raise IntegrityError(
            f"the coordinator says layers {layers} of {manifest.name}, which has none of them"
        )
    draw.shuffle(shards)
    chosen = [shards[n % len(shards)] for n in range(max(1, min(num_leaves, MAX_LEAVES)))]
    leaves = (LeafRef(bytes.fromhex(ref.root), draw.randrange(num_blocks(ref.size))) for ref in chosen)
    return Challenge(secrets.token_bytes(NONCE_BYTES), manifest.release_id, tuple(leaves))


async def _ask(endpoint: str, challenge: Challenge) -> Answer:
    request = proof_pb2.Challenge(
        protocol=VERSION,
        nonce=challenge.nonce,
        release_id=challenge.release_id,
        leaves=[proof_pb2.LeafRef(root=leaf.root, index=leaf.index) for leaf in challenge.leaves],
    )
    async with open_channel(endpoint) as channel:
        stub: Any = proof_pb2_grpc.ProofStub(channel)
        for attempts_left in reversed(range(RETRIES)):
            try:
                reply = await stub.Prove(request, timeout=CALL_SECONDS)
                break
            except grpc.aio.AioRpcError as exc:
                error = error_from(exc)
                if not isinstance(error, Temporary) or not attempts_left:
                    raise error from exc
                await asyncio.sleep(RETRY_SECONDS)
    leaves = tuple(Leaf(leaf.data, tuple(leaf.siblings)) for leaf in reply.leaves)
    return Answer(reply.public_key, reply.time, leaves, reply.signature)


def _problem_of(findings: Sequence[LeafFinding], manifest: Manifest) -> MeshError | None:
    files = {bytes.fromhex(ref.root): ref.file for ref in manifest.shards}
    bad = {f"{files[found.ref.root]} ({found.problem})": None for found in findings if found.problem}
    return IntegrityError(f"it does not hold {', '.join(bad)}") if bad else None


def _node(message: coordinator_pb2.FleetNode) -> FleetNode:
    endpoint = format_endpoint(message.stage.host, message.stage.port) if message.HasField("stage") else None
    layers = LayerRange(message.layers.start, message.layers.stop)
    return FleetNode(message.node_id, message.name, layers, endpoint, message.license_acceptance)


def _node_json(proof: NodeProof, files: Mapping[bytes, str]) -> dict[str, Any]:
    node, answer = proof.node, proof.answer
    found = {finding.ref: finding for finding in proof.findings}
    return {
        "node_id": node.node_id,
        "name": node.name,
        "layers": str(node.layers),
        "endpoint": node.endpoint,
        "state": proof.state,
        "problem": "; ".join(map(str, proof.problems)) or None,
        "license_acceptance": {
            "accepted": proof.accepted.accepted,
            "record": strict_json.loads(node.acceptance, max_bytes=MAX_ACCEPTANCE_BYTES),
        }
        if proof.accepted is not None
        else None,
        "asked_at": proof.asked_at,
        "nonce": proof.challenge.nonce.hex(),
        "time": answer.time if answer is not None else None,
        "public_key": answer.public_key.hex() if answer is not None else None,
        "signature": answer.signature.hex() if answer is not None else None,
        "leaves": [
            {
                "file": files[ref.root],
                "root": ref.root.hex(),
                "index": ref.index,
                "digest": found[ref].digest if ref in found else None,
                "problem": found[ref].problem if ref in found else None,
            }
            for ref in proof.challenge.leaves
        ],
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
