"""A release on disk, as ``mesh pack`` wrote it.

    DIR/manifest.dsse.json     the signed manifest
    DIR/release.torrent        a BitTorrent v2 .torrent
    DIR/<torrent name>/        the shards (of a release of files: the files in their directories), so that DIR is what a
                               BitTorrent client calls the save path
    DIR/LICENSE, NOTICE, USE_POLICY
                               copies of the texts in the aux shard, for people and for who has to accept them first
    DIR/release.bpz.torrent    of a release with encoded twins: their .torrent,
    DIR/<torrent name>.bpz/    and they; both may be deleted, whoever fetches then takes the shards as they are

Opening checks the signature; ``mesh.verification`` checks every byte. Knows nothing of BitTorrent: whoever uses the
.torrent checks it against the manifest first (``mesh.swarm.metainfo.check_torrent``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import IntegrityError, NotFound
from mesh.weights.trust.license_text import MAX_TEXTS_BYTES
from mesh.weights.trust.manifest import EncodedShard, Manifest, ShardRef
from mesh.weights.trust.signing import MAX_ENVELOPE_BYTES, TrustRoot, open_manifest

MANIFEST_FILE = "manifest.dsse.json"
TORRENT_FILE = "release.torrent"
TWIN_TORRENT_FILE = "release.bpz.torrent"
TEXT_FILES = ("LICENSE", "NOTICE", "USE_POLICY")
MAX_TORRENT_BYTES = 128 * 1024 * 1024  # 32 bytes per 4 MiB piece: enough for 16 TiB


@dataclass(frozen=True, slots=True)
class Release:
    """``manifest`` was signed by a trusted key; ``torrent`` is only bytes."""

    directory: Path
    manifest: Manifest
    envelope: bytes
    torrent: bytes
    twin_torrent: bytes | None = None  # None: there are no twins, or they are not here

    @classmethod
    def open(cls, directory: Path, trust: TrustRoot, signed_anew: bytes | None = None) -> Release:
        """``signed_anew`` is an envelope that counts in place of the one that lies there.

        Raises NotFound, UnknownKey, SignatureInvalid or ManifestInvalid.
        """
        if not directory.is_dir():
            raise NotFound(f"release {directory}: no such directory; `mesh pack` makes one")
        envelope = signed_anew or read_envelope(directory / MANIFEST_FILE)
        torrent = read_bounded(directory / TORRENT_FILE, MAX_TORRENT_BYTES)
        manifest = open_manifest(envelope, trust)
        twins = directory / TWIN_TORRENT_FILE
        twin_torrent = (
            read_bounded(twins, MAX_TORRENT_BYTES) if manifest.encodings and twins.is_file() else None
        )
        return cls(directory, manifest, envelope, torrent, twin_torrent)

    def holds(self, ref: ShardRef) -> bool:
        """Whether the shard is meant to be here: all of them are, where ``mesh pack`` wrote."""
        return True

    def shard_path(self, ref: ShardRef) -> Path:
        """Of a shard that it ``holds``."""
        return self.directory / self.manifest.torrent.name / ref.file

    def twin_paths(self) -> dict[EncodedShard, Path]:
        """Where the encoded twins lie that came with the release."""
        if self.twin_torrent is None:
            return {}
        return {
            twin: self.directory / encoding.torrent.name / twin.file
            for encoding in self.manifest.encodings
            for twin in encoding.shards
        }

    def unlisted_files(self) -> tuple[str, ...]:
        """What lies in the release and is not part of it, as paths relative to it."""
        listed = {self.directory / MANIFEST_FILE, self.directory / TORRENT_FILE}
        listed |= {self.shard_path(ref) for ref in self.manifest.shards}
        digests = (
            self.manifest.license.text_digest,
            self.manifest.license.notice_digest,
            self.manifest.license.policy_digest,
        )
        listed |= {
            path
            for path, digest in zip((self.directory / name for name in TEXT_FILES), digests, strict=True)
            if digest is not None and _is_text(path, digest)
        }
        if self.twin_torrent is not None:
            listed |= {self.directory / TWIN_TORRENT_FILE, *self.twin_paths().values()}
        found = (path for path in self.directory.rglob("*") if not path.is_dir() or path.is_symlink())
        return tuple(sorted(str(path.relative_to(self.directory)) for path in found if path not in listed))


def _is_text(path: Path, digest: str) -> bool:
    """Whether ``path`` is the very text that the manifest names; any other text there is not the release's."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_TEXTS_BYTES:
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == digest


def read_envelope(path: Path) -> bytes:
    """The bytes of a manifest's envelope, nothing believed yet. Raises NotFound or IntegrityError."""
    return read_bounded(path, MAX_ENVELOPE_BYTES)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Raises NotFound, or IntegrityError for a file that is too large to be what it should."""
    if not path.is_file():
        raise NotFound(f"{path} does not exist; is {path.parent} a release that `mesh pack` wrote?")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise IntegrityError(f"{path} is larger than {max_bytes} bytes; that is not a release's")
    return data
