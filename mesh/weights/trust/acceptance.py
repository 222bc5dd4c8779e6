"""A node's word that its owner has read a licence and accepts it: evidence that an operator keeps and may show.

    record = sign_acceptance(LicenseAcceptance.of(manifest, key.public, now), key)
    open_acceptance(record).check_for(manifest, node_id)

The record names the exact texts by their digests, the release, the node's key and the time; it is signed by that very
key, and the node id is the key's fingerprint. So it stands alone: whoever has the record, the manifest and the texts can
check it without asking anybody. It is bound to one release and one node; another text is another licence.

Knows values and signatures. Knows nothing of where records are kept, and nothing of law.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from mesh import strict_json
from mesh.errors import LicenseRefused, ManifestInvalid, UsageError
from mesh.weights.trust.json_fields import Fields
from mesh.weights.trust.manifest import LicenseRef, Manifest
from mesh.weights.trust.signing import (
    PrivateKey,
    PublicKey,
    TrustRoot,
    open_payload,
    sign_payload,
    unverified_payload,
)

PAYLOAD_TYPE = "application/vnd.llama-mesh.license-acceptance+json"
SCHEMA = "llama-mesh.license-acceptance/1"
MAX_ACCEPTANCE_BYTES = 8 * 1024
_HEX32 = re.compile(r"[0-9a-f]{64}")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,99}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class LicenseAcceptance:
    license: LicenseRef  # id and digests of what was shown
    release_id: str  # hex
    release_name: str
    node_key: PublicKey
    accepted: str  # RFC 3339 UTC, by the node's clock

    def __post_init__(self) -> None:
        digests = (self.license.text_digest, self.license.notice_digest, self.license.policy_digest)
        for digest in (self.release_id, *(digest for digest in digests if digest is not None)):
            _match(_HEX32, digest)
        _match(_ID, self.license.id)
        _match(_NAME, self.release_name)
        _match(_TIMESTAMP, self.accepted)

    @classmethod
    def of(cls, manifest: Manifest, node_key: PublicKey, now: float) -> LicenseAcceptance:
        accepted = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        return cls(manifest.license, manifest.release_id, manifest.name, node_key, accepted)

    @property
    def node_id(self) -> str:
        return self.node_key.key_id

    def check_for(self, manifest: Manifest, node_id: str) -> None:
        """Raises LicenseRefused unless this is that node's word on that very release and its very texts."""
        if self.node_id != node_id:
            raise LicenseRefused(
                f"the licence acceptance is {self.node_id}'s, not {node_id[:80]}'s; each node accepts for itself"
            )
        if self.release_id != manifest.release_id:
            raise LicenseRefused(
                f"the licence acceptance is for release {self.release_id[:16]}, not {manifest.release_id[:16]}; "
                "accept the licence of the release that is served"
            )
        if terms(self.license) != terms(manifest.license):
            raise LicenseRefused(
                f"the licence acceptance is of other texts than those of {manifest.license.id} in release "
                f"{manifest.release_id[:16]}; read and accept these"
            )

    def to_bytes(self) -> bytes:
        """The canonical bytes: what is signed."""
        license_ = self.license
        optional = {"notice_digest": license_.notice_digest, "policy_digest": license_.policy_digest}
        return strict_json.dumps(
            {
                "schema": SCHEMA,
                "license": {
                    "id": license_.id,
                    "text_digest": license_.text_digest,
                    **{key: digest for key, digest in optional.items() if digest is not None},
                },
                "release": {"id": self.release_id, "name": self.release_name},
                "node_key": self.node_key.raw.hex(),
                "accepted": self.accepted,
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> LicenseAcceptance:
        """Raises ManifestInvalid; never anything else, whatever the bytes."""
        try:
            value = strict_json.loads(data, max_bytes=MAX_ACCEPTANCE_BYTES)
        except ValueError as exc:
            raise ManifestInvalid(f"licence acceptance is not strict JSON: {exc}") from exc
        top = Fields("licence acceptance", value)
        if (schema := top.text("schema")) != SCHEMA:
            raise ManifestInvalid(f"licence acceptance schema {schema!r}: this version reads {SCHEMA!r}")
        license_, release, key = top.object("license"), top.object("release"), top.text("node_key")
        _match(_HEX32, key)
        acceptance = cls(
            LicenseRef(
                license_.text("id"),
                license_.text("text_digest"),
                acceptance_required=True,
                notice_digest=license_.optional_text("notice_digest"),
                policy_digest=license_.optional_text("policy_digest"),
            ),
            release.text("id"),
            release.text("name"),
            PublicKey(bytes.fromhex(key)),
            top.text("accepted"),
        )
        for fields in (license_, release, top):
            fields.done()
        if acceptance.to_bytes() != data:
            raise ManifestInvalid("licence acceptance is not in canonical form")
        return acceptance


Terms = tuple[str, str, str | None, str | None]


def terms(license_: LicenseRef) -> Terms:
    """What somebody agrees to: the id and every text, whatever release it comes with."""
    return (license_.id, license_.text_digest, license_.notice_digest, license_.policy_digest)


def sign_acceptance(acceptance: LicenseAcceptance, key: PrivateKey) -> bytes:
    """The DSSE envelope. Raises UsageError for another key than the one named inside."""
    if key.public != acceptance.node_key:
        raise UsageError(f"an acceptance by {acceptance.node_id} cannot be signed by {key.public.key_id}")
    return sign_payload(acceptance.to_bytes(), PAYLOAD_TYPE, key)


def open_acceptance(envelope: bytes) -> LicenseAcceptance:
    """The acceptance, once the key that it names is known to have signed it.

    It must be parsed to learn that key, as a certificate request must; what it says counts only after the signature
    fits. Raises ManifestInvalid, UnknownKey or SignatureInvalid; never anything else, whatever the bytes.
    """
    what, limit = "licence acceptance", MAX_ACCEPTANCE_BYTES
    claimed = LicenseAcceptance.parse(unverified_payload(envelope, PAYLOAD_TYPE, what=what, max_bytes=limit))
    trust = TrustRoot.of(claimed.node_key)
    open_payload(envelope, PAYLOAD_TYPE, trust, what=what, max_bytes=limit)  # raises unless that key signed
    return claimed


def _match(pattern: re.Pattern[str], value: str) -> None:
    if not pattern.fullmatch(value):
        raise ManifestInvalid(f"licence acceptance: {value[:80]!r}: expected {pattern.pattern}")
