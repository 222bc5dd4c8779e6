"""Our Ed25519 keys as TUF wants to see them, and back.

TUF names a key by the hash of its description (64 hex digits); people compare ``ed25519:…`` as everywhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from securesystemslib.formats import encode_canonical
from securesystemslib.signer import Key, Signature, Signer, SSlibKey

from mesh.errors import CatalogRefused
from mesh.weights.trust.signing import PrivateKey, PublicKey, TrustRoot


def tuf_key(key: PublicKey) -> SSlibKey:
    described = {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": key.raw.hex()}}
    canonical = encode_canonical(described)
    assert isinstance(canonical, str)
    return SSlibKey(hashlib.sha256(canonical.encode()).hexdigest(), **described)  # type: ignore[arg-type]


def own_key(key: Key) -> PublicKey:
    """Raises CatalogRefused for what is no Ed25519 key: nothing else is ever written by us."""
    public = key.keyval.get("public")
    if key.keytype != "ed25519" or not isinstance(public, str):
        raise CatalogRefused(f"catalog key {key.keyid[:16]}: type {key.keytype[:20]!r}, expected ed25519")
    try:
        return PublicKey(bytes.fromhex(public))
    except Exception as exc:
        raise CatalogRefused(f"catalog key {key.keyid[:16]}: not an Ed25519 public key") from exc


def trust_of(keys: Iterable[Key]) -> TrustRoot:
    """The keys of a publisher as whom a manifest must be signed by."""
    return TrustRoot.of(*(own_key(key) for key in keys))


class KeySigner(Signer):
    """Signs metadata with one of our keys; ``mesh.weights.trust.signing`` does the mathematics."""

    def __init__(self, key: PrivateKey) -> None:
        self._key, self._public = key, tuf_key(key.public)

    def sign(self, payload: bytes) -> Signature:
        return Signature(self._public.keyid, self._key.sign(payload).hex())

    @property
    def public_key(self) -> Key:
        return self._public

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: object = None) -> Signer:
        raise NotImplementedError("our keys are files; see mesh.weights.trust.keyring")
