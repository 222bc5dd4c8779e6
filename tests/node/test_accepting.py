"""An offer is taken only if every claim in it holds; each refusal has its own error and its own exit code."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from mesh.errors import (
    IntegrityError,
    LicenseRefused,
    ManifestInvalid,
    NotEnoughDisk,
    NotEnoughMemory,
    SignatureInvalid,
    TorrentMismatch,
    UnknownKey,
)
from mesh.layers import LayerRange
from mesh.publishing import pack_release
from mesh.weights.releases.release import Release
from mesh.weights.trust.license_text import LicenseTexts
from mesh.weights.trust.signing import PrivateKey, TrustRoot, sign_manifest
from node.accepting import AcceptedOffer, LicenseNotAccepted, Limits, OfferedBytes, accept
from tests.support.releases import PackedRelease, pack_tiny
from tests.support.tiny_models import write_tiny_checkpoint

LICENSE_TEXT = b"Read me, then say so."


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedRelease:
    return pack_tiny(
        tmp_path_factory.mktemp("release"),
        license_id="LicenseRef-test",
        license_text=LICENSE_TEXT,
    )


@pytest.fixture
def offer(packed: PackedRelease) -> OfferedBytes:
    release = packed.open()
    return OfferedBytes(
        release.manifest.release_id,
        packed.trust.to_bytes(),
        release.envelope,
        release.torrent,
        LayerRange(1, 3),
        LicenseTexts(LICENSE_TEXT),
    )


@pytest.mark.parametrize("hostile", [True, False])
def test_torrent_of_twins_is_taken_only_if_the_manifest_signs_it(
    tmp_path: Path, packed: PackedRelease, offer: OfferedBytes, hostile: bool
) -> None:
    source = write_tiny_checkpoint(tmp_path / "checkpoint")
    pack_release(
        source, tmp_path / "out", "LicenseRef-test", LICENSE_TEXT, packed.key, name="tiny", encode=True
    )
    release = Release.open(tmp_path / "out", packed.trust)
    assert release.twin_torrent is not None
    encoded = replace(
        offer,
        release_id=release.manifest.release_id,
        manifest=release.envelope,
        torrent=release.torrent,
        twin_torrent=release.torrent if hostile else release.twin_torrent,
    )
    if hostile:
        with pytest.raises(TorrentMismatch):
            judge(encoded, packed)
    else:
        assert judge(encoded, packed).twin_torrent == release.twin_torrent
        assert judge(replace(encoded, twin_torrent=b""), packed).twin_torrent is None


def test_torrent_of_twins_that_the_manifest_does_not_have_is_not_kept(
    packed: PackedRelease, offer: OfferedBytes
) -> None:
    assert judge(replace(offer, twin_torrent=b"anything"), packed).twin_torrent is None


LIMITS = Limits(
    max_sessions=8,
    model=None,
    memory_bytes=4 << 30,
    disk_bytes=1 << 30,
    kv_tokens=256,
    layers=None,
    accepted_terms=frozenset({("LicenseRef-test", sha256(LICENSE_TEXT).hexdigest(), None, None)}),
)
NOTHING_ACCEPTED = replace(LIMITS, accepted_terms=frozenset())


def judge(offer: OfferedBytes, packed: PackedRelease, limits: Limits = LIMITS) -> AcceptedOffer:
    return accept(offer, trust_digest=packed.trust.digest(), trust_override=None, limits=limits)


def test_honest_offer_is_accepted_with_just_its_own_shards(
    offer: OfferedBytes, packed: PackedRelease
) -> None:
    accepted = judge(offer, packed)
    assert [ref.file for ref in accepted.shards] == ["layer-00001.safetensors", "layer-00002.safetensors"]
    assert accepted.plan.total_bytes <= LIMITS.memory_bytes


def test_trust_root_that_is_not_the_tokens_is_refused(offer: OfferedBytes, packed: PackedRelease) -> None:
    """The coordinator swaps the whole chain for its own: key, signature and all."""
    stranger = PrivateKey.generate()
    forged = replace(
        offer,
        trust_root=TrustRoot.of(stranger.public).to_bytes(),
        manifest=sign_manifest(packed.manifest, stranger),
    )
    with pytest.raises(IntegrityError, match="trust root is not the one in the join token"):
        judge(forged, packed)


def test_manifest_of_an_unknown_key_is_refused_by_that_key(
    offer: OfferedBytes, packed: PackedRelease
) -> None:
    stranger = PrivateKey.generate()
    with pytest.raises(UnknownKey) as refusal:
        judge(replace(offer, manifest=sign_manifest(packed.manifest, stranger)), packed)
    assert refusal.value.key_id == stranger.public.key_id


def test_flipped_byte_in_the_envelope_is_refused(offer: OfferedBytes, packed: PackedRelease) -> None:
    at = offer.manifest.index(b'"payload":"') + 200
    flipped = bytearray(offer.manifest)
    flipped[at] = ord("A") if flipped[at] != ord("A") else ord("B")
    with pytest.raises((SignatureInvalid, ManifestInvalid)):
        judge(replace(offer, manifest=bytes(flipped)), packed)


def test_another_release_than_announced_is_refused(offer: OfferedBytes, packed: PackedRelease) -> None:
    with pytest.raises(IntegrityError, match="offered release"):
        judge(replace(offer, release_id="0" * 64), packed)


def test_torrent_that_differs_from_the_manifest_is_refused(
    offer: OfferedBytes, packed: PackedRelease, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = pack_tiny(tmp_path_factory.mktemp("other"), seed=1).open()
    with pytest.raises(TorrentMismatch):
        judge(replace(offer, torrent=other.torrent), packed)


def test_license_that_was_not_accepted_is_refused_naming_it(
    offer: OfferedBytes, packed: PackedRelease
) -> None:
    with pytest.raises(LicenseRefused, match="--accept-license LicenseRef-test") as refusal:
        judge(offer, packed, NOTHING_ACCEPTED)
    assert refusal.value.exit_code == 5


def test_license_text_is_shown_and_only_the_one_that_was_signed(
    offer: OfferedBytes, packed: PackedRelease
) -> None:
    with pytest.raises(LicenseNotAccepted) as refusal:
        judge(offer, packed, NOTHING_ACCEPTED)
    assert refusal.value.texts == LicenseTexts(LICENSE_TEXT)
    for texts in (LicenseTexts(b"Do as you like."), LicenseTexts(LICENSE_TEXT, notice=b"Also this.")):
        with pytest.raises(IntegrityError, match="than the manifest of this release names"):
            judge(replace(offer, texts=texts), packed, NOTHING_ACCEPTED)


def test_accepting_another_text_under_the_same_id_accepts_nothing(
    offer: OfferedBytes, packed: PackedRelease
) -> None:
    older = frozenset({("LicenseRef-test", sha256(b"The text of last year.").hexdigest(), None, None)})
    with pytest.raises(LicenseNotAccepted):
        judge(offer, packed, replace(LIMITS, accepted_terms=older))


def test_layers_beyond_the_model_are_refused(offer: OfferedBytes, packed: PackedRelease) -> None:
    with pytest.raises(IntegrityError, match="of a model with 4"):
        judge(replace(offer, layers=LayerRange(3, 5)), packed)


def test_other_layers_than_insisted_on_are_refused(offer: OfferedBytes, packed: PackedRelease) -> None:
    with pytest.raises(IntegrityError, match="--layers 0:2"):
        judge(offer, packed, replace(LIMITS, layers=LayerRange(0, 2)))


def test_too_little_memory_is_refused_by_our_own_arithmetic(
    offer: OfferedBytes, packed: PackedRelease
) -> None:
    needed = judge(offer, packed).plan.total_bytes
    assert judge(offer, packed, replace(LIMITS, memory_bytes=needed)).plan.total_bytes == needed
    with pytest.raises(NotEnoughMemory, match="raise --memory") as refusal:
        judge(offer, packed, replace(LIMITS, memory_bytes=needed - 1))
    assert refusal.value.exit_code == 7


def test_too_little_disk_is_refused(offer: OfferedBytes, packed: PackedRelease) -> None:
    with pytest.raises(NotEnoughDisk, match="--data"):
        judge(offer, packed, replace(LIMITS, disk_bytes=1000))


def test_volunteers_own_trust_file_overrides_the_token(offer: OfferedBytes, packed: PackedRelease) -> None:
    accepted = accept(
        replace(offer, trust_root=b"whatever"),
        trust_digest=b"\0" * 32,
        trust_override=packed.trust,
        limits=LIMITS,
    )
    assert accepted.manifest == packed.manifest
    with pytest.raises(UnknownKey):
        accept(
            offer,
            trust_digest=packed.trust.digest(),
            trust_override=TrustRoot.of(PrivateKey.generate().public),
            limits=LIMITS,
        )
