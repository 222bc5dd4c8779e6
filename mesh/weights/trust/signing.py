"""Who vouches for a manifest: Ed25519 keys, the set of keys that is trusted, and the DSSE envelope.

A signature covers the exact bytes of the manifest together with their type, so a signature over anything else can
never be shown as one over a manifest. Bytes are verified first and parsed after; nothing is ever re-serialised to be
verified.

Knows keys and envelopes. Knows nothing of where keys are kept (``keyring.py``) or of what a manifest says. The one
door to ``cryptography``.

Follows RFC 8032 (Ed25519), https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md and RFC 8410 (key files).
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh import strict_json
from mesh.errors import ManifestInvalid, SignatureInvalid, UnknownKey, UsageError
from mesh.weights.disk import naming_full_disk, read_small
from mesh.weights.trust.manifest import MAX_MANIFEST_BYTES, Manifest

PAYLOAD_TYPE = "application/vnd.llama-mesh.manifest+json"
TRUST_SCHEMA = "llama-mesh.trust/1"
MAX_ENVELOPE_BYTES = MAX_MANIFEST_BYTES * 4 // 3 + 64 * 1024  # base64, and room for signatures
MAX_TRUST_BYTES = 64 * 1024
MAX_KEYS = 64
MAX_SIGNATURES = 16
_MAX_KEY_FILE_BYTES = 16 * 1024
_HEX_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key: 32 raw bytes (RFC 8032)."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise UsageError(f"Ed25519 public key of {len(self.raw)} bytes: expected 32")

    @property
    def key_id(self) -> str:
        """What people compare: ``ed25519:`` and 32 hex digits."""
        return f"ed25519:{hashlib.sha256(self.raw).hexdigest()[:32]}"

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True


class PrivateKey:
    """An Ed25519 signing key. Never printed, never part of a message."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> PrivateKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> PrivateKey:
        """The key of a 32-byte seed (RFC 8032 section 5.1.5)."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path) -> PrivateKey:
        """Read a PEM (PKCS #8) key as ``save`` and ``openssl genpkey -algorithm ed25519`` write it."""
        data = read_small(path, _MAX_KEY_FILE_BYTES, "key")
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:  # TypeError: it wants a password
            raise UsageError(
                f"{path}: not an unencrypted PEM private key; make one with: mesh keys new"
            ) from exc
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(f"{path}: not an Ed25519 key; make one with: mesh keys new")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write it readable by its owner alone. Raises UsageError if ``path`` exists: a key is never overwritten."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as exc:
            raise UsageError(f"{path} exists; keys are never overwritten, choose another name") from exc
        with naming_full_disk(path), os.fdopen(descriptor, "wb") as file:
            file.write(pem)

    @property
    def public(self) -> PublicKey:
        return PublicKey(
            self._key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        )

    def sign(self, message: bytes) -> bytes:
        """64 bytes (RFC 8032)."""
        return self._key.sign(message)


@dataclass(frozen=True, slots=True)
class TrustRoot:
    """The publishers one believes, by key id. ``raw`` is the file as it is: its digest travels in join tokens."""

    keys: Mapping[str, PublicKey]
    raw: bytes

    @classmethod
    def of(cls, *keys: PublicKey) -> TrustRoot:
        found = {key.key_id: key for key in sorted(keys, key=lambda key: key.key_id)}
        listed = [{"key_id": key_id, "ed25519": key.raw.hex()} for key_id, key in found.items()]
        return cls(found, strict_json.dumps({"schema": TRUST_SCHEMA, "keys": listed}) + b"\n")

    @classmethod
    def from_bytes(cls, data: bytes) -> TrustRoot:
        """Raises ManifestInvalid; never anything else, whatever the bytes."""
        try:
            value = strict_json.loads(data, max_bytes=MAX_TRUST_BYTES)
        except ValueError as exc:
            raise ManifestInvalid(f"trust root is not strict JSON: {exc}") from exc
        top = _fields("trust root", value, {"schema", "keys"})
        if top["schema"] != TRUST_SCHEMA:
            raise ManifestInvalid(f"trust root schema {str(top['schema'])[:40]!r}: expected {TRUST_SCHEMA!r}")
        if not isinstance(top["keys"], list) or not 1 <= len(top["keys"]) <= MAX_KEYS:
            raise ManifestInvalid(f"trust root: expected a list of 1 to {MAX_KEYS} keys")
        keys: dict[str, PublicKey] = {}
        for item in top["keys"]:
            entry = _fields("trust root key", item, {"key_id", "ed25519"})
            if not isinstance(entry["ed25519"], str) or not _HEX_KEY.fullmatch(entry["ed25519"]):
                raise ManifestInvalid("trust root key: ed25519 is not 64 hex digits")
            key = PublicKey(bytes.fromhex(entry["ed25519"]))
            if entry["key_id"] != key.key_id:  # or people would compare a fingerprint that proves nothing
                raise ManifestInvalid(f"trust root key: key_id is not that of the key, {key.key_id}")
            keys[key.key_id] = key
        return cls(keys, data)

    @classmethod
    def load(cls, path: Path) -> TrustRoot:
        data = read_small(path, MAX_TRUST_BYTES, "trust")
        try:
            return cls.from_bytes(data)
        except ManifestInvalid as exc:
            raise ManifestInvalid(f"{path}: {exc}") from exc

    def to_bytes(self) -> bytes:
        return self.raw

    def digest(self) -> bytes:
        """SHA-256 of the exact bytes."""
        return hashlib.sha256(self.raw).digest()

    def key(self, key_id: str) -> PublicKey:
        """Raises UnknownKey."""
        if (key := self.keys.get(key_id)) is None:
            raise UnknownKey(
                key_id,
                f"signed by {key_id}, which is not trusted here; compare that fingerprint with the publisher's"
                " and pass their key with --trust FILE",
            )
        return key


def sign_manifest(manifest: Manifest, key: PrivateKey) -> bytes:
    """The DSSE envelope of the manifest's exact bytes, as JSON."""
    return sign_payload(manifest.to_bytes(), PAYLOAD_TYPE, key)


def sign_payload(payload: bytes, payload_type: str, key: PrivateKey) -> bytes:
    """A DSSE envelope, as JSON. A signature over one type is never one over another."""
    signature = {"keyid": key.public.key_id, "sig": _base64(key.sign(_pae(payload_type, payload)))}
    envelope = {"payload": _base64(payload), "payloadType": payload_type, "signatures": [signature]}
    return strict_json.dumps(envelope) + b"\n"


def open_manifest(envelope: bytes, trust: TrustRoot) -> Manifest:
    """The manifest inside, once a trusted key is known to have signed it; ``signer_of`` tells which.

    Raises ManifestInvalid, UnknownKey or SignatureInvalid; never anything else, whatever the bytes.
    """
    # Only now is it worth reading.
    return Manifest.parse(open_payload(envelope, PAYLOAD_TYPE, trust)[0])


def signer_of(envelope: bytes, trust: TrustRoot) -> PublicKey:
    """The trusted key that signed. Checks, and raises, as ``open_manifest`` does."""
    payload, key = open_payload(envelope, PAYLOAD_TYPE, trust)
    Manifest.parse(payload)
    return key


def peek_manifest(envelope: bytes) -> Manifest:
    """The manifest inside, whoever signed it: to count and to name what was verified when it came in, never to load.

    Raises ManifestInvalid.
    """
    return Manifest.parse(
        unverified_payload(envelope, PAYLOAD_TYPE, what="manifest", max_bytes=MAX_ENVELOPE_BYTES)
    )


def open_payload(
    envelope: bytes,
    payload_type: str,
    trust: TrustRoot,
    *,
    what: str = "manifest",
    max_bytes: int = MAX_ENVELOPE_BYTES,
) -> tuple[bytes, PublicKey]:
    """The payload of an envelope and the trusted key that signed it. Raises as ``open_manifest`` does."""
    payload, signatures = _read_envelope(envelope, payload_type, what, max_bytes)

    # (4) A known key claims it. The id is only a hint, as DSSE says: it picks the key, the signature proves it.
    signature, key = _known_signature(signatures, trust)

    # (5) The signature fits the exact bytes and their type.
    if not key.has_signed(_pae(payload_type, payload), signature):
        raise SignatureInvalid(
            f"{what}: the signature of {key.key_id} does not fit the bytes; they were changed, fetch them again"
        )
    return payload, key


def unverified_payload(envelope: bytes, payload_type: str, *, what: str, max_bytes: int) -> bytes:
    """The payload before anybody vouched for it: for a value that names its own key, which ``open_payload`` then
    has to be given. Raises ManifestInvalid."""
    return _read_envelope(envelope, payload_type, what, max_bytes)[0]


def _read_envelope(
    envelope: bytes, payload_type: str, what: str, max_bytes: int
) -> tuple[bytes, dict[str, bytes]]:
    # (1) Size before content.  (2) Strict JSON: one reading, exactly the fields of DSSE.
    try:
        value = strict_json.loads(envelope, max_bytes=max_bytes)
    except ValueError as exc:
        raise ManifestInvalid(f"{what} envelope is not strict JSON: {exc}") from exc
    top = _fields(f"{what} envelope", value, {"payload", "payloadType", "signatures"})
    payload = _unbase64(f"{what} envelope payload", top["payload"])

    # (3) The type the signature covers is ours.
    if top["payloadType"] != payload_type:
        raise ManifestInvalid(
            f"{what} envelope type {str(top['payloadType'])[:80]!r}: expected {payload_type!r}"
        )
    return payload, _signatures(top["signatures"], what)


def _known_signature(signatures: Mapping[str, bytes], trust: TrustRoot) -> tuple[bytes, PublicKey]:
    for key_id, signature in signatures.items():
        if key_id in trust.keys:
            return signature, trust.key(key_id)
    return b"", trust.key(min(signatures))  # raises UnknownKey


def _signatures(value: object, what: str) -> dict[str, bytes]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_SIGNATURES:
        raise ManifestInvalid(f"{what} envelope: expected 1 to {MAX_SIGNATURES} signatures")
    found: dict[str, bytes] = {}
    for item in value:
        entry = _fields(f"{what} envelope signature", item, {"keyid", "sig"})
        key_id = entry["keyid"]
        if not isinstance(key_id, str) or len(key_id) > 100 or not key_id.isprintable():
            raise ManifestInvalid(f"{what} envelope signature: keyid is not a short text")
        found[key_id] = _unbase64(f"{what} envelope signature", entry["sig"])
    return found


def _pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE pre-authentication encoding: unambiguous, so a type can never bleed into a payload."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _fields(where: str, value: object, wanted: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ManifestInvalid(f"{where}: expected an object")
    if wrong := wanted.symmetric_difference(value):
        raise ManifestInvalid(f"{where}: missing or unknown field {min(wrong)[:40]!r}")
    return value


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unbase64(what: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise ManifestInvalid(f"{what}: expected a text")
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as exc:
        raise ManifestInvalid(f"{what} is not base64: {exc}") from exc
