"""A release on the coordinator's disk: checked offline, then hosted.

Signature, torrent, and the aux shard that holds tokenizer and chat template; the coordinator reads no other shard.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from coordinator.access.admission import Admission
from coordinator.availability import Availability
from coordinator.hosting import Hosted
from coordinator.membership import Membership
from coordinator.pipeline import Pipeline
from coordinator.served_catalog import ServedCatalog
from coordinator.service import OfferedRelease
from coordinator.serving import ServedModel
from mesh.clock import Clock
from mesh.errors import UsageError
from mesh.model.chat_template import ChatTemplate
from mesh.model.tokenizer import Tokenizer
from mesh.swarm.metainfo import check_torrent
from mesh.swarm.twins import check_twin_torrent, readable_encoding
from mesh.weights.releases.release import Release
from mesh.weights.shards.shard import Shard, read_shard
from mesh.weights.trust.license_text import MAX_TEXTS_BYTES, LicenseTexts
from mesh.weights.trust.signing import PublicKey, TrustRoot, signer_of
from mesh.wire.channel import MAX_MESSAGE_BYTES

_OFFER_ROOM_BYTES = 1024 * 1024 + MAX_TEXTS_BYTES  # of a message, for everything but manifest and torrents


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    release: Release
    signer: PublicKey
    aux: Shard
    texts: LicenseTexts


def verify(directory: Path, trust: TrustRoot, catalog: ServedCatalog | None = None) -> VerifiedRelease:
    """Every check that needs no network. Raises IntegrityError, NotFound, UsageError."""
    release = Release.open(directory, trust)
    if catalog is not None:
        catalog.current(release.manifest.release_id)
    release.manifest.require_model()
    check_torrent(release.torrent, release.manifest)
    ref = release.manifest.shard("aux")
    if catalog is not None:
        catalog.check_revoked(release.manifest, [ref])
    aux = read_shard(release.shard_path(ref), ref)
    texts = LicenseTexts.of_aux(aux)
    texts.check(release.manifest.license)
    if len(release.envelope) + len(release.torrent) > MAX_MESSAGE_BYTES - _OFFER_ROOM_BYTES:
        raise UsageError(f"{directory}: manifest and torrent are too large for one offer; use larger pieces")
    return VerifiedRelease(release, signer_of(release.envelope, trust), aux, texts)


def host(
    verified: VerifiedRelease,
    trust: TrustRoot,
    lease_seconds: float,
    clock: Clock,
    *,
    max_session_tokens: int | None = None,
    at_once: bool = False,
) -> Hosted:
    """Everything that serves it; nothing is open yet. ``trust`` is what nodes are told."""
    manifest = verified.release.manifest
    membership = Membership(manifest.config.num_layers, lease_seconds)
    availability = Availability(manifest.name, membership, clock)
    pipeline = Pipeline(availability.find_route, availability.on_link_lost)
    return Hosted(
        offered=_offered(verified, trust),
        membership=membership,
        availability=availability,
        model=_served_model(verified, pipeline, Admission(availability, clock), max_session_tokens),
        close=_closing(availability, pipeline),
        replaces_at_once=at_once,
    )


def _closing(availability: Availability, pipeline: Pipeline) -> Callable[[], Awaitable[None]]:
    async def close() -> None:
        availability.stop()
        await pipeline.close()

    return close


def _offered(verified: VerifiedRelease, trust: TrustRoot) -> OfferedRelease:
    release = verified.release
    return OfferedRelease(
        manifest=release.manifest,
        trust_root=trust.to_bytes(),
        envelope=release.envelope,
        torrent=release.torrent,
        twin_torrent=_twin_torrent(release),
        texts=verified.texts,
    )


def _twin_torrent(release: Release) -> bytes:
    """Empty when there is none, or no room for it in an offer: nodes then fetch the shards as they are."""
    encoding, torrent = readable_encoding(release.manifest), release.twin_torrent
    if encoding is None or torrent is None:
        return b""
    check_twin_torrent(torrent, encoding, release.manifest)
    size = len(release.envelope) + len(release.torrent) + len(torrent)
    return torrent if size <= MAX_MESSAGE_BYTES - _OFFER_ROOM_BYTES else b""


def _served_model(
    verified: VerifiedRelease, pipeline: Pipeline, admission: Admission, max_session_tokens: int | None
) -> ServedModel:
    manifest, tokenizer = verified.release.manifest, Tokenizer.from_aux(verified.aux)
    return ServedModel(
        name=manifest.name,
        manifest=manifest,
        tokenizer=tokenizer,
        chat_template=ChatTemplate.from_aux(verified.aux, tokenizer),
        pipeline=pipeline,
        admission=admission,
        created=int(datetime.fromisoformat(manifest.created).timestamp()),
        max_session_tokens=max_session_tokens,
    )
