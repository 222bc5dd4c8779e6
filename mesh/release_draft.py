"""What will be published, before a byte of it is written: everything a manifest says but what only the written files know.

Made of a checkpoint or of any directory; ``check`` finds what would break a rule now, not after hours of writing.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh import __version__, strict_json
from mesh.architecture import LlamaConfig
from mesh.errors import ManifestInvalid, UsageError
from mesh.sizes import format_size
from mesh.swarm import metainfo
from mesh.swarm.twins import encoding_of
from mesh.weights.checkpoints.checkpoint import open_checkpoint
from mesh.weights.checkpoints.quantize import quantized
from mesh.weights.checkpoints.small_files import Terms
from mesh.weights.checkpoints.source_digest import METHOD, files_digest, model_digest
from mesh.weights.releases.file_tree import open_files
from mesh.weights.releases.release import TEXT_FILES
from mesh.weights.shards import contents
from mesh.weights.shards.contents import Content
from mesh.weights.shards.encoding import twin_file
from mesh.weights.shards.shard import PIECE_LENGTH, FileRange, WrittenShard
from mesh.weights.trust.license_text import resolve_license
from mesh.weights.trust.manifest import (
    EMPTY_ROOT,
    MAX_MANIFEST_BYTES,
    EncodedShard,
    LicenseRef,
    Manifest,
    Provenance,
    ShardRef,
    TorrentRef,
)

FILES_AUX = (
    "release-aux.safetensors"  # `aux` alone is a device's name on Windows, and lies among a publisher's own
)
MAX_PIECES = 200_000  # 32 bytes each; libtorrent reads a .torrent of 10 MB at most


@dataclass(frozen=True, slots=True)
class Draft:
    """Everything a manifest says except what only the written files know."""

    name: str
    source: Path
    model: LlamaConfig | None
    quantization: str | None
    contents: tuple[Content, ...]  # in the manifest's order
    piece_length: int
    license: LicenseRef
    arguments: tuple[str, ...]  # that changed what is packed
    encode: bool
    source_files: tuple[Path, ...]
    carried: tuple[FileRange, ...]  # what of them is in the shards
    texts: Mapping[str, bytes]  # LICENSE and kin, by file
    private: bool = True  # peers from the coordinator alone

    @property
    def rest_bytes(self) -> int:
        """What is read of the source beside what is written."""
        if self.model is None:
            return 0
        carried = sum(range_.nbytes for range_ in self.carried)
        return max(0, sum(path.stat().st_size for path in self.source_files) - carried)

    def source_digest(
        self, shards: Sequence[ShardRef], written: Sequence[WrittenShard], count: Callable[[int], None]
    ) -> str:
        if self.model is None:
            return files_digest(shards)
        roots = {
            (ref.role, ref.layer): shard.data_root.hex()
            for ref, shard in zip(shards, written, strict=True)
            if shard.data_root is not None
        }
        return model_digest(self.source_files, self.carried, roots, count)

    def manifest(
        self,
        shards: Sequence[ShardRef],
        source_digest: str,
        created: str,
        twins: Sequence[EncodedShard] = (),
        v1_pieces: bytes | None = None,
    ) -> Manifest:
        info = metainfo.build_info(
            self.name, self.piece_length, self.private, torrent_files(shards), v1_pieces
        )
        hybrid = metainfo.hybrid_ref(info, v1_pieces) if v1_pieces is not None else None
        return Manifest(
            name=self.name,
            family="files" if self.model is None else "llama",
            model=self.model,
            quantization=self.quantization,
            shards=tuple(shards),
            torrent=TorrentRef(self.name, self.piece_length, self.private, metainfo.infohash(info), hybrid),
            license=self.license,
            provenance=Provenance(
                self.source.absolute().name,
                source_digest,
                f"llama-mesh {__version__}",
                self.arguments,
                METHOD,
            ),
            created=created,
            encodings=(encoding_of(self.name, PIECE_LENGTH, self.private, twins),) if twins else (),
        )

    def check(self, created: str) -> None:
        """Find a name, license id or time that breaks a rule now, not after hours of writing. Raises UsageError."""
        if self.name in TEXT_FILES:
            raise UsageError(
                f"release name {self.name}: a file beside the shards is called that; choose another --name"
            )
        # Nothing in a manifest is longer than this but the sizes' digits.
        shards = [
            ShardRef(content.role, content.layer, content.file, max(1, content.nbytes), EMPTY_ROOT)
            for content in self.contents
        ]
        twins = [EncodedShard(ref.file, twin_file(ref.file), 1, EMPTY_ROOT) for ref in shards]
        try:
            size = len(self.manifest(shards, EMPTY_ROOT, created, twins if self.encode else ()).to_bytes())
        except ManifestInvalid as exc:
            raise UsageError(str(exc)) from exc
        if size > MAX_MANIFEST_BYTES - _ROOM_BYTES:
            raise UsageError(
                f"{self.source}: {len(shards)} files make a manifest of {format_size(size)}, at most"
                f" {format_size(MAX_MANIFEST_BYTES)} are read; publish it in parts, or put small files into archives"
            )


_ROOM_BYTES = 4096  # in a manifest, for digits


def model_draft(
    source: Path, quantize: str | None, encode: bool, terms: Callable[[Terms], Licensed]
) -> Draft:
    original = open_checkpoint(source)
    checkpoint = original if quantize is None else quantized(original, quantize)
    licensed = terms(original.terms)
    piece_length = piece_length_for(checkpoint.weight_bytes)
    files = {
        **checkpoint.aux_files,
        "config.json": strict_json.dumps(checkpoint.config.to_json()),
        **licensed.texts,
    }
    return Draft(
        name=checkpoint.name,
        source=source,
        model=checkpoint.config,
        quantization=checkpoint.quantization,
        contents=(
            *contents.weights(checkpoint, original, licensed.ref.text_digest, piece_length, encode=encode),
            contents.aux(contents.shard_file(("aux", None)), files, licensed.ref.text_digest, piece_length),
        ),
        piece_length=piece_length,
        license=licensed.ref,
        arguments=() if quantize is None else ("--quantize", quantize),
        encode=encode,
        source_files=original.source_files,
        carried=tuple(original.carried),
        texts=licensed.texts,
    )


def files_draft(source: Path, copy: bool, terms: Callable[[Terms], Licensed]) -> Draft:
    tree = open_files(source)
    licensed = terms(tree.terms)
    piece_length = piece_length_for(sum(file.size for file in tree.files))
    return Draft(
        name=tree.name,
        source=source,
        model=None,
        quantization=None,
        contents=(
            *contents.plain_files(tree, copy=copy, piece_length=piece_length),
            contents.aux(FILES_AUX, licensed.texts, licensed.ref.text_digest, piece_length),
        ),
        piece_length=piece_length,
        license=licensed.ref,
        arguments=("--as", "files"),
        encode=False,
        source_files=tree.source_files,
        carried=(),
        texts=licensed.texts,
    )


@dataclass(frozen=True, slots=True)
class Licensed:
    """The terms of a release, as its manifest names them and as its aux shard holds them."""

    ref: LicenseRef
    texts: Mapping[str, bytes]


def licensed(license_id: str, given: Terms, found: Terms) -> Licensed:
    """What was ``given`` by the user counts, else what was ``found`` beside the weights. Raises UsageError."""
    license_id, text, is_open = resolve_license(license_id, given.license, found.license)
    texts = {"LICENSE": text}
    for what, data in (
        ("NOTICE", found.notice if given.notice is None else given.notice),
        ("USE_POLICY", found.policy if given.policy is None else given.policy),
    ):
        if data is not None:
            if not data.strip():
                raise UsageError(f"license {license_id}: its {what} is empty")
            texts[what] = data
    digests = {what: hashlib.sha256(data).hexdigest() for what, data in texts.items()}
    ref = LicenseRef(
        license_id, digests["LICENSE"], not is_open, digests.get("NOTICE"), digests.get("USE_POLICY")
    )
    return Licensed(ref, texts)


def piece_length_for(total_bytes: int) -> int:
    """4 MiB; of more than 800 GB larger, so that the .torrent stays one that clients read."""
    length = PIECE_LENGTH
    while total_bytes > MAX_PIECES * length:
        length *= 2
    return length


def creation_time(environment: Mapping[str, str], now: float) -> str:
    """SOURCE_DATE_EPOCH (https://reproducible-builds.org/specs/source-date-epoch/) or ``now``, as RFC 3339."""
    epoch = environment.get("SOURCE_DATE_EPOCH", str(int(now)))
    if not re.fullmatch(r"\d{1,11}", epoch, re.ASCII):
        raise UsageError(f"SOURCE_DATE_EPOCH {epoch[:40]!r}: expected seconds since 1970")
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(epoch)))


def torrent_files(shards: Sequence[ShardRef]) -> list[metainfo.TorrentFile]:
    return [metainfo.TorrentFile(ref.file, ref.size, bytes.fromhex(ref.root)) for ref in shards]
