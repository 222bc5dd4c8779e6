"""Whether to take an offer: every check between a stranger's bytes and a plan, in order, without I/O.

The token is the only thing a node trusts from the start. It carries the digest of the trust root, so the coordinator
cannot choose whom the node believes; everything else follows from that digest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from mesh.errors import IntegrityError, LicenseRefused, NotEnoughDisk, NotEnoughMemory
from mesh.layers import LayerRange
from mesh.model.memory import StagePlan, plan_stage
from mesh.sizes import format_size
from mesh.swarm.metainfo import check_torrent
from mesh.swarm.twins import check_twin_torrent, readable_encoding
from mesh.weights.trust.acceptance import Terms, terms
from mesh.weights.trust.license_text import LicenseTexts
from mesh.weights.trust.manifest import Manifest, ShardRef
from mesh.weights.trust.signing import TrustRoot, open_manifest


class LicenseNotAccepted(LicenseRefused):
    """The volunteer has not said that they accept the licence. ``texts`` are what the publisher signed."""

    def __init__(self, manifest: Manifest, texts: LicenseTexts) -> None:
        license_id = manifest.license.id
        super().__init__(
            f"release {manifest.name} is under {license_id}, shown above: read it, "
            f"then join with --accept-license {license_id}"
        )
        self.manifest, self.texts = manifest, texts


@dataclass(frozen=True, slots=True)
class OfferedBytes:
    """An offer as it came over the wire, nothing believed yet."""

    release_id: str
    trust_root: bytes
    manifest: bytes  # DSSE envelope
    torrent: bytes
    layers: LayerRange
    texts: LicenseTexts
    twin_torrent: bytes = b""  # empty: the release has no encoded twins
    catalog_path: str = ""  # the manifest's target path; empty: a plain list of keys is believed


@dataclass(frozen=True, slots=True)
class Limits:
    """What the volunteer gives and insists on."""

    memory_bytes: int
    disk_bytes: int
    kv_tokens: int
    max_sessions: int
    layers: LayerRange | None
    model: str | None
    accepted_terms: frozenset[Terms]  # of licences, at any time


@dataclass(frozen=True, slots=True)
class AcceptedOffer:
    """An offer whose every claim was checked; safe to show, fetch and load."""

    manifest: Manifest
    envelope: bytes  # the manifest's, with its signature
    torrent: bytes
    layers: LayerRange
    shards: tuple[ShardRef, ...]
    plan: StagePlan
    twin_torrent: bytes | None = None  # None: the release has no encoded twins

    @property
    def shard_bytes(self) -> int:
        return sum(ref.size for ref in self.shards)


def accept(
    offer: OfferedBytes, *, trust_digest: bytes, trust_override: TrustRoot | None, limits: Limits
) -> AcceptedOffer:
    """Raises IntegrityError, LicenseRefused, NotEnoughMemory or NotEnoughDisk; nothing was fetched by then."""
    # (1) whom to believe: the token's digest, or what the volunteer brought, never the coordinator's word
    if trust_override is not None:
        trust = trust_override
    else:
        if hashlib.sha256(offer.trust_root).digest() != trust_digest:
            raise IntegrityError(
                "the coordinator's trust root is not the one in the join token; ask for a new token, or pass --trust FILE"
            )
        trust = TrustRoot.from_bytes(offer.trust_root)
    # (2) size, signature over the exact bytes, then content
    manifest = open_manifest(offer.manifest, trust)
    if manifest.release_id != offer.release_id:
        raise IntegrityError(
            f"the coordinator offered release {offer.release_id[:16]} and sent {manifest.release_id[:16]}"
        )
    # (3) the torrent may name nothing but the manifest's shards
    check_torrent(offer.torrent, manifest)
    encoding = readable_encoding(manifest)
    twin_torrent = offer.twin_torrent if encoding is not None and offer.twin_torrent else None
    if encoding is not None and twin_torrent is not None:
        check_twin_torrent(twin_torrent, encoding, manifest)
    # (4) licence: nobody accepts what they were not shown, and nobody is shown what the publisher did not sign
    if manifest.license.acceptance_required and terms(manifest.license) not in limits.accepted_terms:
        offer.texts.check(manifest.license)
        raise LicenseNotAccepted(manifest, offer.texts)
    if limits.model is not None and manifest.name != limits.model:
        raise IntegrityError(f"offered model {manifest.name}, but --model {limits.model} was asked for")
    # (5) the layers: inside the model, and what the volunteer insists on
    if offer.layers.stop > manifest.config.num_layers:
        raise IntegrityError(
            f"offered layers {offer.layers} of a model with {manifest.config.num_layers}; the coordinator is at fault"
        )
    if limits.layers is not None and offer.layers != limits.layers:
        raise IntegrityError(f"offered layers {offer.layers}, but --layers {limits.layers} was asked for")
    # (6) our own arithmetic, not the coordinator's
    plan = plan_stage(manifest.config, offer.layers, limits.kv_tokens)
    if plan.total_bytes > limits.memory_bytes:
        raise NotEnoughMemory(
            f"layers {offer.layers} need {format_size(plan.total_bytes)} of memory, {format_size(limits.memory_bytes)} "
            "may be used; raise --memory, lower --kv-tokens or ask for fewer --layers"
        )
    accepted = AcceptedOffer(
        manifest,
        offer.manifest,
        offer.torrent,
        offer.layers,
        manifest.shards_for(offer.layers),
        plan,
        twin_torrent,
    )
    if accepted.shard_bytes > limits.disk_bytes:
        raise NotEnoughDisk(
            f"layers {offer.layers} need {format_size(accepted.shard_bytes)} of disk, "
            f"{format_size(limits.disk_bytes)} are free; choose another --data DIR or free some space"
        )
    return accepted
