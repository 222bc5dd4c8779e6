"""What may no longer be used: the revocation list, which the takedown role of a catalog signs.

    revocations = RevocationList.parse(data)
    revocations.check_fresh(now)                                   # fail closed: a stale list permits nothing
    hits = revocations.hits(manifest, signer, manifest.shards_for(layers), now)
    if hits: raise ReleaseRevoked(manifest, hits)

A list replaces the one before: lifting a revocation is a newer list without the entry. It lives seven days at most, so that
nobody can hide a new one for longer. A revoked key takes with it all that it signed, whenever that claims to have been
made: a thief writes any date. What was honest is signed again by another key and keeps its release id.

Pure: bytes, values and ``now``. Knows nothing of TUF (``weights.catalog`` has verified the bytes by then) or of files.
"""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from mesh import strict_json
from mesh.errors import LicenseRefused, ManifestInvalid
from mesh.weights.trust.json_fields import Fields
from mesh.weights.trust.manifest import Manifest, ShardRef

SCHEMA = "llama-mesh.revocations/1"
MAX_BYTES = 1024 * 1024
MAX_ENTRIES = 4096
LIFETIME_SECONDS = 7 * 24 * 3600

_HEX32 = re.compile(r"[0-9a-f]{64}")
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_CASE_REF_CHARS = 200


class Kind(StrEnum):
    SHARD = "shard"  # id: its root, or that of an encoded twin
    RELEASE = "release"  # id: the release id
    KEY = "key"  # id: the fingerprint of a publisher's key
    LICENSE = "license"  # id: a licence id, or the SHA-256 of its text
    INFOHASH = "infohash"  # id: of the release's torrent or its twins'


class Reason(StrEnum):
    DMCA = "dmca"
    KEY_COMPROMISE = "key_compromise"
    DEFECTIVE = "defective"
    LICENSE_WITHDRAWN = "license_withdrawn"


class Action(StrEnum):
    STOP_SERVING = "stop_serving"  # unload, seed no more; the bytes stay
    DELETE = "delete"  # the bytes go too


_IDS = {
    Kind.SHARD: _HEX32,
    Kind.RELEASE: _HEX32,
    Kind.KEY: re.compile(r"ed25519:[0-9a-f]{32}"),
    Kind.LICENSE: re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,99}"),
    Kind.INFOHASH: _HEX32,
}


@dataclass(frozen=True, slots=True)
class Revocation:
    """One entry."""

    kind: Kind
    id: str
    reason: Reason
    effective: str  # RFC 3339 UTC: from when on
    action: Action = Action.STOP_SERVING
    case_ref: str = ""  # whatever lets people find out why: a ticket, a notice

    def __post_init__(self) -> None:
        if not _IDS[self.kind].fullmatch(self.id):
            raise ManifestInvalid(
                f"revocation of {self.kind} {self.id[:80]!r}: expected {_IDS[self.kind].pattern}"
            )
        _seconds(self.effective)
        if len(self.case_ref) > _CASE_REF_CHARS or not self.case_ref.isprintable():
            raise ManifestInvalid(
                f"revocation of {self.kind} {self.id}: case_ref is not {_CASE_REF_CHARS} printable characters at most"
            )

    @property
    def target(self) -> tuple[Kind, str]:
        return self.kind, self.id

    def __str__(self) -> str:
        case = f", case {self.case_ref}" if self.case_ref else ""
        return f"{self.kind} {self.id} ({self.reason}{case})"


@dataclass(frozen=True, slots=True)
class Hit:
    """An entry, and the shards that it forbids."""

    revocation: Revocation
    shards: tuple[ShardRef, ...]


class ReleaseRevoked(LicenseRefused):
    """Exit code 5. Attributes: ``manifest``, ``hits``."""

    def __init__(self, manifest: Manifest, hits: tuple[Hit, ...]) -> None:
        first, more = hits[0].revocation, len(hits) - 1
        super().__init__(
            f"release {manifest.name} was revoked: {first}"
            + (f" and {more} more" if more else "")
            + "; ask the operator of the mesh"
        )
        self.manifest, self.hits = manifest, hits

    @property
    def condemned(self) -> tuple[ShardRef, ...]:
        """Shards whose bytes have to go."""
        gone = (ref for hit in self.hits if hit.revocation.action is Action.DELETE for ref in hit.shards)
        return tuple(dict.fromkeys(gone))


class RevocationsStale(LicenseRefused):
    """Nobody knows what was revoked meanwhile, so nothing may be used."""


@dataclass(frozen=True, slots=True)
class RevocationList:
    version: int  # rises with every list
    issued: str  # RFC 3339 UTC
    expires: str  # likewise, seven days later at most
    entries: tuple[Revocation, ...] = ()  # each target once, sorted

    def __post_init__(self) -> None:
        if not 1 <= self.version < 1 << 53:
            raise ManifestInvalid(f"revocation list version {self.version}: expected 1 or more")
        if not 0 < _seconds(self.expires) - _seconds(self.issued) <= LIFETIME_SECONDS:
            raise ManifestInvalid(
                f"revocation list from {self.issued} to {self.expires}: expected 7 days at most"
            )
        if len(self.entries) > MAX_ENTRIES:
            raise ManifestInvalid(f"revocation list: {len(self.entries)} entries, at most {MAX_ENTRIES}")
        targets = [entry.target for entry in self.entries]
        if targets != sorted(set(targets)):
            raise ManifestInvalid("revocation list: an entry is there twice, or they are not sorted")

    # -- questions

    @property
    def expires_at(self) -> float:
        """Seconds since 1970."""
        return _seconds(self.expires)

    def check_fresh(self, now: float) -> None:
        """Raises RevocationsStale."""
        if now >= self.expires_at:
            raise RevocationsStale(
                f"the revocation list (version {self.version}) expired {self.expires} and no newer one came, so nobody "
                "can say what may still be used; the operator renews it with: mesh revoke --refresh"
            )

    def hits(
        self, manifest: Manifest, signer: str, shards: Iterable[ShardRef], now: float
    ) -> tuple[Hit, ...]:
        """What forbids these shards of a release that ``signer`` (a fingerprint) vouches for; those that delete first."""
        shards = tuple(shards)
        found = [hit for hit in self._hits(manifest, signer, shards, now) if hit.shards]
        return tuple(sorted(found, key=lambda hit: hit.revocation.action is not Action.DELETE))

    def check(self, manifest: Manifest, signer: str, shards: Iterable[ShardRef], now: float) -> None:
        """Raises RevocationsStale or ReleaseRevoked."""
        self.check_fresh(now)
        if hits := self.hits(manifest, signer, shards, now):
            raise ReleaseRevoked(manifest, hits)

    def _hits(
        self, manifest: Manifest, signer: str, shards: tuple[ShardRef, ...], now: float
    ) -> Iterator[Hit]:
        torrents = (manifest.torrent, *(encoding.torrent for encoding in manifest.encodings))
        whole = {
            (Kind.RELEASE, manifest.release_id),
            (Kind.KEY, signer),
            (Kind.LICENSE, manifest.license.id),
            (Kind.LICENSE, manifest.license.text_digest),
            *((Kind.INFOHASH, torrent.infohash) for torrent in torrents),
        }
        twins = {twin.root: twin.of for encoding in manifest.encodings for twin in encoding.shards}
        for entry in self.entries:
            if _seconds(entry.effective) > now:
                continue
            if entry.target in whole:
                yield Hit(entry, shards)
            elif entry.kind is Kind.SHARD:
                file = twins.get(entry.id)
                yield Hit(entry, tuple(ref for ref in shards if ref.root == entry.id or ref.file == file))

    # -- the next list

    @classmethod
    def first(cls, now: float) -> RevocationList:
        return cls(1, timestamp(now), timestamp(now + LIFETIME_SECONDS))

    def renewed(self, now: float) -> RevocationList:
        """The same entries for another seven days."""
        return replace(
            self,
            version=self.version + 1,
            issued=timestamp(now),
            expires=timestamp(now + LIFETIME_SECONDS),
        )

    def adding(self, entries: Iterable[Revocation], now: float) -> RevocationList:
        """An entry of the same target takes the place of the one before."""
        merged = {entry.target: entry for entry in (*self.entries, *entries)}
        return replace(self.renewed(now), entries=tuple(merged[target] for target in sorted(merged)))

    def lifting(self, targets: Iterable[tuple[Kind, str]], now: float) -> RevocationList:
        """Raises ManifestInvalid for a target that is not revoked."""
        lifted = set(targets)
        if unknown := sorted(lifted - {entry.target for entry in self.entries}):
            raise ManifestInvalid(f"{unknown[0][0]} {unknown[0][1]} is not revoked")
        kept = tuple(entry for entry in self.entries if entry.target not in lifted)
        return replace(self.renewed(now), entries=kept)

    # -- bytes

    def to_bytes(self) -> bytes:
        """The canonical bytes: what the takedown role signs."""
        return strict_json.dumps(
            {
                "schema": SCHEMA,
                "version": self.version,
                "issued": self.issued,
                "expires": self.expires,
                "entries": [
                    {
                        "kind": entry.kind.value,
                        "id": entry.id,
                        "reason": entry.reason.value,
                        "effective": entry.effective,
                        "action": entry.action.value,
                        "case_ref": entry.case_ref,
                    }
                    for entry in self.entries
                ],
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> RevocationList:
        """Raises ManifestInvalid; never anything else, whatever the bytes."""
        try:
            value = strict_json.loads(data, max_bytes=MAX_BYTES)
        except ValueError as exc:
            raise ManifestInvalid(f"revocation list is not strict JSON: {exc}") from exc
        top = Fields("revocation list", value)
        if (schema := top.text("schema")) != SCHEMA:
            raise ManifestInvalid(f"revocation list schema {schema!r}: this version reads {SCHEMA!r}")
        found = cls(top.integer("version"), top.text("issued"), top.text("expires"), tuple(_entries(top)))
        top.done()
        if found.to_bytes() != data:
            raise ManifestInvalid("revocation list is not in canonical form")
        return found


def timestamp(now: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))


def _entries(top: Fields) -> Iterator[Revocation]:
    for entry in top.objects("entries"):
        try:
            yield Revocation(
                Kind(entry.text("kind")),
                entry.text("id"),
                Reason(entry.text("reason")),
                entry.text("effective"),
                Action(entry.text("action")),
                entry.text("case_ref"),
            )
        except ValueError as exc:  # an unknown kind forbids something that we would overlook
            raise ManifestInvalid(f"revocation list: {exc}; a newer version may know it") from exc
        entry.done()


def _seconds(text: str) -> int:
    try:
        if not _TIMESTAMP.fullmatch(text):
            raise ValueError(text)
        return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError as exc:
        raise ManifestInvalid(
            f"revocation list time {text[:40]!r}: expected RFC 3339 in UTC, seconds"
        ) from exc
