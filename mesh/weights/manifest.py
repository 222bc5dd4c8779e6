"""The manifest: the signed list of what a release is.

Holds the model's config, every shard with its content address, the torrent's identity and the licence. Immutable;
``Manifest.parse(m.to_bytes()) == m``, and the bytes of a value are the same on every machine, so
``release_id`` (SHA-256 of the bytes) names a release for good.

Knows nothing of signatures (``signing.py``), of files on disk (``release.py``) or of tensors (``tensor_file.py``).
``parse`` is called only on bytes whose signature was verified; it still trusts nothing: every field is bounded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mesh import strict_json
from mesh.architecture import LlamaConfig
from mesh.errors import CheckpointUnsupported, ManifestInvalid
from mesh.layers import LayerRange

SCHEMA = "llama-mesh.manifest/1"
MAX_MANIFEST_BYTES = 2 * 1024 * 1024
MAX_SHARD_BYTES = 1 << 40
MAX_PIECE_BYTES = 128 * 1024 * 1024  # libtorrent's bound
ROLES = ("layer", "embed", "head", "aux")

_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")  # flat, portable, never a path
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HEX32 = re.compile(r"[0-9a-f]{64}")
_LICENSE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,99}")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True, slots=True)
class ShardRef:
    """One shard as the manifest names it. ``root`` is the hex BEP 52 ``pieces root`` of the file's bytes."""

    role: str
    layer: int | None  # of role "layer" only
    file: str
    size: int  # bytes
    root: str


@dataclass(frozen=True, slots=True)
class TorrentRef:
    """How BitTorrent names the release: the v2 infohash covers name, piece length, privacy and every root."""

    name: str
    piece_length: int  # bytes, a power of two
    private: bool
    infohash: str  # hex SHA-256 of the bencoded info dict


@dataclass(frozen=True, slots=True)
class LicenseRef:
    """Under what terms the weights may be used. ``text_digest`` is the hex SHA-256 of the text in the aux shard."""

    id: str  # SPDX id or LicenseRef-…
    text_digest: str
    acceptance_required: bool


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the weights came from, in the publisher's words."""

    source: str  # file name, never a path
    source_digest: str  # hex SHA-256 of the source's bytes (of a directory: of its sorted file digests)
    tool: str  # "llama-mesh 0.1.0", and the arguments that changed the weights


@dataclass(frozen=True, slots=True)
class Manifest:
    name: str
    family: str  # "llama"
    config: LlamaConfig
    quantization: str  # the type of most layer weights: "Q4_1", "BF16", …
    shards: tuple[ShardRef, ...]  # embed, layers in order, head, aux
    torrent: TorrentRef
    license: LicenseRef
    provenance: Provenance
    created: str  # RFC 3339 UTC, seconds

    def __post_init__(self) -> None:
        _check(self)

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
        return strict_json.dumps(
            {
                "schema": SCHEMA,
                "name": self.name,
                "family": self.family,
                "config": self.config.to_json(),
                "quantization": self.quantization,
                "shards": [
                    {"role": s.role, "layer": s.layer, "file": s.file, "size": s.size, "root": s.root}
                    for s in self.shards
                ],
                "torrent": {
                    "name": self.torrent.name,
                    "piece_length": self.torrent.piece_length,
                    "private": self.torrent.private,
                    "infohash": self.torrent.infohash,
                },
                "license": {
                    "id": self.license.id,
                    "text_digest": self.license.text_digest,
                    "acceptance_required": self.license.acceptance_required,
                },
                "provenance": {
                    "source": self.provenance.source,
                    "source_digest": self.provenance.source_digest,
                    "tool": self.provenance.tool,
                },
                "created": self.created,
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Raises ManifestInvalid; never anything else, whatever the bytes."""
        try:
            value = strict_json.loads(data, max_bytes=MAX_MANIFEST_BYTES)
        except ValueError as exc:
            raise ManifestInvalid(f"manifest is not the JSON we sign: {exc}") from exc
        top = _Object("manifest", value)
        if (schema := top.text("schema")) != SCHEMA:
            raise ManifestInvalid(f"manifest schema {schema!r}: this version reads {SCHEMA!r}")
        torrent, license_ = top.object("torrent"), top.object("license")
        provenance = top.object("provenance")
        try:
            manifest = cls(
                name=top.text("name"),
                family=top.text("family"),
                config=LlamaConfig.from_json(top.take("config")),
                quantization=top.text("quantization"),
                shards=tuple(_shards(top.take("shards"))),
                torrent=TorrentRef(
                    torrent.text("name"),
                    torrent.integer("piece_length"),
                    torrent.boolean("private"),
                    torrent.text("infohash"),
                ),
                license=LicenseRef(
                    license_.text("id"), license_.text("text_digest"), license_.boolean("acceptance_required")
                ),
                provenance=Provenance(
                    provenance.text("source"), provenance.text("source_digest"), provenance.text("tool")
                ),
                created=top.text("created"),
            )
        except CheckpointUnsupported as exc:
            raise ManifestInvalid(f"manifest: {exc}") from exc
        for part in (top, torrent, license_, provenance):
            part.done()
        if manifest.to_bytes() != data:
            raise ManifestInvalid("manifest is not in canonical form; its release id would be ambiguous")
        return manifest


class _Object:
    """A JSON object read field by field; what nobody took is an error."""

    def __init__(self, where: str, value: object) -> None:
        if not isinstance(value, dict):
            raise ManifestInvalid(f"{where}: expected an object")
        self._where, self._left = where, dict(value)

    def take(self, key: str) -> Any:
        if key not in self._left:
            raise ManifestInvalid(f"{self._where}: field {key!r} is missing")
        return self._left.pop(key)

    def _typed(self, key: str, kind: type) -> Any:
        value = self.take(key)
        if type(value) is not kind:
            raise ManifestInvalid(
                f"{self._where} {key}: expected {kind.__name__}, found {type(value).__name__}"
            )
        return value

    def text(self, key: str) -> str:
        value: str = self._typed(key, str)
        if len(value) > 300:
            raise ManifestInvalid(f"{self._where} {key}: longer than 300 characters")
        return value

    def integer(self, key: str) -> int:
        return self._typed(key, int)  # type: ignore[no-any-return]

    def boolean(self, key: str) -> bool:
        return self._typed(key, bool)  # type: ignore[no-any-return]

    def object(self, key: str) -> _Object:
        return _Object(f"{self._where} {key}", self.take(key))

    def done(self) -> None:
        if self._left:
            raise ManifestInvalid(f"{self._where}: unknown field {min(self._left)!r}")


def _shards(value: object) -> Iterator[ShardRef]:
    if not isinstance(value, list):
        raise ManifestInvalid("manifest shards: expected a list")
    for index, item in enumerate(value):
        shard = _Object(f"manifest shards[{index}]", item)
        layer = shard.take("layer")
        if layer is not None and type(layer) is not int:
            raise ManifestInvalid(f"manifest shards[{index}] layer: expected an integer or null")
        yield ShardRef(
            shard.text("role"), layer, shard.text("file"), shard.integer("size"), shard.text("root")
        )
        shard.done()


def _check(m: Manifest) -> None:
    """The rules that tie the fields together; a Manifest that exists obeys them all."""
    _match("name", _MODEL_NAME, m.name)
    if m.family != "llama":
        raise ManifestInvalid(f"manifest family {m.family!r}: this version runs 'llama'")
    _match("quantization", re.compile(r"[A-Z0-9_]{1,20}"), m.quantization)
    _match("created", _TIMESTAMP, m.created)
    _match("torrent name", _MODEL_NAME, m.torrent.name)
    _match("torrent infohash", _HEX32, m.torrent.infohash)
    length = m.torrent.piece_length
    if not 16384 <= length <= MAX_PIECE_BYTES or length & (length - 1):
        raise ManifestInvalid(
            f"manifest piece_length {length}: expected a power of two from 16 KiB to 128 MiB"
        )
    _match("license id", _LICENSE_ID, m.license.id)
    _match("license text_digest", _HEX32, m.license.text_digest)
    _match("provenance source_digest", _HEX32, m.provenance.source_digest)
    for what, text in (("source", m.provenance.source), ("tool", m.provenance.tool)):
        if not text.isprintable():  # they end on a terminal; a lone surrogate has no bytes to sign either
            raise ManifestInvalid(f"manifest provenance {what} {text[:80]!r}: expected printable characters")

    seen: set[tuple[str, int | None]] = set()
    files: set[str] = set()
    for ref in m.shards:
        if ref.role not in ROLES:
            raise ManifestInvalid(f"manifest shard {ref.file!r}: unknown role {ref.role!r}")
        if (ref.layer is None) == (ref.role == "layer"):
            raise ManifestInvalid(f"manifest shard {ref.file!r}: role {ref.role} with layer {ref.layer}")
        if (ref.role, ref.layer) in seen:
            what = ref.role if ref.layer is None else f"layer {ref.layer}"
            raise ManifestInvalid(f"manifest names {what} twice")
        seen.add((ref.role, ref.layer))
        _match("shard file", _FILE_NAME, ref.file)
        if ref.file in files:
            raise ManifestInvalid(f"manifest names file {ref.file!r} twice")
        files.add(ref.file)
        _match("shard root", _HEX32, ref.root)
        if not 0 < ref.size <= MAX_SHARD_BYTES:
            raise ManifestInvalid(f"manifest shard {ref.file!r}: size {ref.size} is out of bounds")
    wanted = [
        ("embed", None),
        *(("layer", i) for i in range(m.config.num_layers)),
        ("head", None),
        ("aux", None),
    ]
    if [(ref.role, ref.layer) for ref in m.shards] != wanted:
        missing = next((w for w in wanted if w not in seen), None)
        detail = (
            "shards out of order"
            if missing is None
            else f"no shard for {missing[0]} {missing[1] or ''}".strip()
        )
        raise ManifestInvalid(
            f"manifest: {detail}; expected embed, layers 0 to {m.config.num_layers - 1}, head, aux"
        )


def _match(what: str, pattern: re.Pattern[str], value: str) -> None:
    if not pattern.fullmatch(value):
        raise ManifestInvalid(f"manifest {what} {value[:80]!r}: expected {pattern.pattern}")
