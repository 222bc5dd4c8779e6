"""The manifest: the signed list of what a release is.

Holds the model's config, every shard with its content address, the torrent's identity and the licence. A release of
family ``files`` holds plain files, a data set for example: the same without a model. Immutable;
``Manifest.parse(m.to_bytes()) == m``, and the bytes of a value are the same on every machine, so
``release_id`` (SHA-256 of the bytes) names a release for good.

Knows the values and the rules that tie them together. Knows nothing of their spelling (``manifest_json.py``), of
signatures (``signing.py``), of files on disk (``release.py``) or of tensors (``tensor_file.py``).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from mesh.architecture import LlamaConfig
from mesh.errors import ManifestInvalid, UsageError
from mesh.layers import LayerRange
from mesh.weights.trust.file_paths import check_path, check_tree

MAX_MANIFEST_BYTES = 2 * 1024 * 1024
MAX_SHARD_BYTES = 1 << 40
MAX_ARGUMENTS = 32
MAX_PIECE_BYTES = 128 * 1024 * 1024  # libtorrent's bound
ROLES = ("layer", "embed", "head", "aux", "file")
FAMILIES = ("llama", "files")
EMPTY_ROOT = "0" * 64  # of a file without bytes: BEP 52 gives it no root, libtorrent says zeros

_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")  # flat, portable, never a path
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HEX20 = re.compile(r"[0-9a-f]{40}")
_HEX32 = re.compile(r"[0-9a-f]{64}")
_LICENSE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,99}")
_CODEC = re.compile(r"[a-z0-9-]{1,40}/[0-9]{1,4}")
_METHOD = re.compile(r"[a-z0-9.-]{1,40}/[0-9]{1,4}")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True, slots=True)
class ShardRef:
    """One shard as the manifest names it. ``root`` is the hex BEP 52 ``pieces root`` of the file's bytes.

    A shard of role ``file`` is a plain file, published unchanged: no header of ours is in it.
    """

    role: str
    layer: int | None  # of role "layer" only
    file: str  # a name; of role "file" a relative path with slashes
    size: int  # bytes; 0 of role "file" only, and its root is then EMPTY_ROOT
    root: str


@dataclass(frozen=True, slots=True)
class HybridRef:
    """What v1 clients see of the same torrent (BEP 3); v1 hashes are checked by them, never by us."""

    infohash_v1: str  # hex SHA-1 of the bencoded info dict
    pieces_digest: str  # hex SHA-256 of the concatenated SHA-1 piece hashes, so that they are signed too


@dataclass(frozen=True, slots=True)
class TorrentRef:
    """How BitTorrent names the release: the v2 infohash covers name, piece length, privacy and every root."""

    name: str
    piece_length: int  # bytes, a power of two
    private: bool
    infohash: str  # hex SHA-256 of the bencoded info dict
    hybrid: HybridRef | None = None


@dataclass(frozen=True, slots=True)
class LicenseRef:
    """Under what terms the weights may be used. Digests are the hex SHA-256 of texts in the aux shard."""

    id: str  # SPDX id or LicenseRef-…
    text_digest: str
    acceptance_required: bool
    notice_digest: str | None = (
        None  # of NOTICE, which some licences oblige whoever passes weights on to include
    )
    policy_digest: str | None = None  # of USE_POLICY


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the weights came from, in the publisher's words."""

    source: str  # file name, never a path
    source_digest: str  # hex SHA-256, of what says ``method``
    tool: str  # "llama-mesh 0.1.0"
    arguments: tuple[str, ...] = ()  # those that changed the weights, as they were given
    method: str | None = (
        None  # "llama-mesh.source/1"; None: the file's bytes, or its directory's file digests
    )


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """Another spelling of a shard for slow links. Its own root says what travels; ``of`` says what it decodes to."""

    of: str  # the file of the shard in ``Manifest.shards``; its root is what the decoded bytes must have
    file: str
    size: int  # bytes
    root: str


@dataclass(frozen=True, slots=True)
class EncodingRef:
    """Encoded twins of some shards, in a torrent of their own so that nobody has to fetch both."""

    codec: str  # "byteplane-zstd/1"
    shards: tuple[EncodedShard, ...]
    torrent: TorrentRef


@dataclass(frozen=True, slots=True)
class Manifest:
    name: str
    family: str  # "llama", or "files"
    model: LlamaConfig | None  # None of files
    quantization: str | None  # the type of most layer weights: "Q4_1", "BF16", …; None of files
    shards: tuple[ShardRef, ...]  # embed, layers in order, head, aux; of files: by path, aux last
    torrent: TorrentRef
    license: LicenseRef
    provenance: Provenance
    created: str  # RFC 3339 UTC, seconds
    expires: str | None = None  # likewise; None: as long as the catalog lists it
    encodings: tuple[EncodingRef, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    @property
    def is_model(self) -> bool:
        return self.model is not None

    @property
    def config(self) -> LlamaConfig:
        """Raises UsageError for a release of files."""
        return self.require_model()

    def require_model(self) -> LlamaConfig:
        """What runs; one line for whoever was given files instead. Raises UsageError."""
        if self.model is None:
            raise UsageError(
                f"release {self.name} holds files, not a model: it can be seeded, pulled and verified, not run"
            )
        return self.model

    @property
    def release_id(self) -> str:
        """Hex SHA-256 of the manifest's bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def total_bytes(self) -> int:
        return sum(shard.size for shard in self.shards)

    def shard(self, role: str, layer: int | None = None) -> ShardRef:
        return next(ref for ref in self.shards if ref.role == role and ref.layer == layer)

    def shards_for(self, layers: LayerRange) -> tuple[ShardRef, ...]:
        """The shards a stage of ``layers`` must hold, and no other: its layers, ``embed`` where it embeds, ``head``
        where it projects (of a tied model also ``embed``, whose weights the projection shares), never ``aux``."""
        last = layers.is_last(self.config.num_layers)
        return tuple(
            ref
            for ref in self.shards
            if (ref.role == "layer" and ref.layer in layers)
            or (ref.role == "embed" and (layers.is_first() or (last and self.config.tied)))
            or (ref.role == "head" and last)
        )

    def to_bytes(self) -> bytes:
        """The canonical bytes: what is signed and what ``release_id`` names."""
        from mesh.weights.trust import manifest_json  # it spells these values, so it imports this module

        return manifest_json.write(self)

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Raises ManifestInvalid; never anything else, whatever the bytes."""
        from mesh.weights.trust import manifest_json

        return manifest_json.read(data)


def _check(m: Manifest) -> None:
    """The rules that tie the fields together; a Manifest that exists obeys them all."""
    _match("name", _MODEL_NAME, m.name)
    if m.family not in FAMILIES:
        raise ManifestInvalid(f"manifest family {m.family!r}: this version knows {', '.join(FAMILIES)}")
    if (m.model is None, m.quantization is None) != (m.family == "files",) * 2:
        raise ManifestInvalid("manifest: a model has a config and a quantization, files have neither")
    if m.quantization is not None:
        _match("quantization", re.compile(r"[A-Z0-9_]{1,20}"), m.quantization)
    _match("created", _TIMESTAMP, m.created)
    if m.expires is not None:
        _match("expires", _TIMESTAMP, m.expires)
        if m.expires <= m.created:  # this spelling of time sorts as text
            raise ManifestInvalid(f"manifest expires {m.expires}, which is not after created {m.created}")
    _check_torrent(m.torrent)
    _match("license id", _LICENSE_ID, m.license.id)
    _match("license text_digest", _HEX32, m.license.text_digest)
    for what, digest in (("notice", m.license.notice_digest), ("policy", m.license.policy_digest)):
        if digest is not None:
            _match(f"license {what}_digest", _HEX32, digest)
    _match("provenance source_digest", _HEX32, m.provenance.source_digest)
    if m.provenance.method is not None:
        _match("provenance method", _METHOD, m.provenance.method)
    if len(m.provenance.arguments) > MAX_ARGUMENTS:
        raise ManifestInvalid(
            f"manifest provenance: {len(m.provenance.arguments)} arguments, at most {MAX_ARGUMENTS}"
        )
    texts = [("source", m.provenance.source), ("tool", m.provenance.tool)]
    for what, text in (*texts, *(("argument", argument) for argument in m.provenance.arguments)):
        if not text.isprintable():  # they end on a terminal; a lone surrogate has no bytes to sign either
            raise ManifestInvalid(f"manifest provenance {what} {text[:80]!r}: expected printable characters")

    if m.model is not None:
        _check_shards(m.shards, m.model.num_layers)
    else:
        _check_files(m.shards)
    _check_encodings(m)


def _check_shards(shards: tuple[ShardRef, ...], num_layers: int) -> None:
    seen: set[tuple[str, int | None]] = set()
    files: set[str] = set()
    for ref in shards:
        _check_shard(ref)
        if (ref.role, ref.layer) in seen:
            what = ref.role if ref.layer is None else f"layer {ref.layer}"
            raise ManifestInvalid(f"manifest names {what} twice")
        seen.add((ref.role, ref.layer))
        if ref.file in files:
            raise ManifestInvalid(f"manifest names file {ref.file!r} twice")
        files.add(ref.file)
    wanted = [("embed", None), *(("layer", i) for i in range(num_layers)), ("head", None), ("aux", None)]
    if [(ref.role, ref.layer) for ref in shards] != wanted:
        missing = next((w for w in wanted if w not in seen), None)
        detail = (
            "shards out of order"
            if missing is None
            else f"no shard for {missing[0]} {missing[1] or ''}".strip()
        )
        raise ManifestInvalid(f"manifest: {detail}; expected embed, layers 0 to {num_layers - 1}, head, aux")


def _check_files(shards: tuple[ShardRef, ...]) -> None:
    for ref in shards:
        _check_shard(ref)
    paths = [ref.file for ref in shards[:-1]]
    if not paths or paths != sorted(paths) or [ref.role for ref in shards] != ["file"] * len(paths) + ["aux"]:
        raise ManifestInvalid("manifest: expected one file at least, in the order of their paths, then aux")
    try:
        check_tree(ref.file for ref in shards)
    except ValueError as exc:
        raise ManifestInvalid(f"manifest files: {exc}") from exc


def _check_shard(ref: ShardRef) -> None:
    if ref.role not in ROLES:
        raise ManifestInvalid(f"manifest shard {ref.file!r}: unknown role {ref.role!r}")
    if (ref.layer is None) == (ref.role == "layer"):
        raise ManifestInvalid(f"manifest shard {ref.file!r}: role {ref.role} with layer {ref.layer}")
    if ref.role == "file":
        try:
            check_path(ref.file)
        except ValueError as exc:
            raise ManifestInvalid(f"manifest file {ref.file[:80]!r}: {exc}") from exc
    else:
        _match("shard file", _FILE_NAME, ref.file)
    _match("shard root", _HEX32, ref.root)
    smallest = 0 if ref.role == "file" else 1
    if not smallest <= ref.size <= MAX_SHARD_BYTES or (ref.size == 0 and ref.root != EMPTY_ROOT):
        raise ManifestInvalid(f"manifest shard {ref.file!r}: size {ref.size} is out of bounds")


def _check_torrent(torrent: TorrentRef) -> None:
    _match("torrent name", _MODEL_NAME, torrent.name)
    _match("torrent infohash", _HEX32, torrent.infohash)
    length = torrent.piece_length
    if not 16384 <= length <= MAX_PIECE_BYTES or length & (length - 1):
        raise ManifestInvalid(
            f"manifest piece_length {length}: expected a power of two from 16 KiB to 128 MiB"
        )
    if torrent.hybrid is not None:
        _match("torrent infohash_v1", _HEX20, torrent.hybrid.infohash_v1)
        _match("torrent pieces_digest", _HEX32, torrent.hybrid.pieces_digest)


def _check_encodings(m: Manifest) -> None:
    """Each codec once, its files beside nothing else's: the torrents must be told apart by name."""
    names = [m.torrent.name, *(encoding.torrent.name for encoding in m.encodings)]
    if len(set(names)) != len(names) or len({e.codec for e in m.encodings}) != len(m.encodings):
        raise ManifestInvalid("manifest encodings: a codec or a torrent name is there twice")
    order = {ref.file: index for index, ref in enumerate(m.shards)}
    for encoding in m.encodings:
        _match("encoding codec", _CODEC, encoding.codec)
        _check_torrent(encoding.torrent)
        if encoding.torrent.private != m.torrent.private:
            raise ManifestInvalid(f"manifest encoding {encoding.codec}: private unlike the release's torrent")
        places = [order.get(twin.of, -1) for twin in encoding.shards]
        if not places or -1 in places or places != sorted(set(places)):
            raise ManifestInvalid(
                f"manifest encoding {encoding.codec}: expected twins of the release's shards, in their order"
            )
        if len({twin.file for twin in encoding.shards}) != len(places):
            raise ManifestInvalid(f"manifest encoding {encoding.codec} names a file twice")
        for twin in encoding.shards:
            _match("encoded shard file", _FILE_NAME, twin.file)
            _match("encoded shard root", _HEX32, twin.root)
            if not 0 < twin.size <= MAX_SHARD_BYTES:
                raise ManifestInvalid(
                    f"manifest encoded shard {twin.file!r}: size {twin.size} is out of bounds"
                )


def _match(what: str, pattern: re.Pattern[str], value: str) -> None:
    if not pattern.fullmatch(value):
        raise ManifestInvalid(f"manifest {what} {value[:80]!r}: expected {pattern.pattern}")
