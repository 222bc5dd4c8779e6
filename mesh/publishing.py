"""Publish: a checkpoint in, or a directory of any files, and a signed release out.

    pack_release(Path("model.gguf"), Path("release"), "apache-2.0", None, key)

Everything is checked before anything is written. The release is written beside ``out`` and renamed into place when it
is whole, so that nobody ever sees half of one; a run that was interrupted goes on where it stopped. All cores write, memory
is bounded by chunks of tensors, never by the model, no byte is hashed twice, and the same input gives the same shards on
every machine.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from mesh import __version__, strict_json
from mesh.architecture import LlamaConfig
from mesh.errors import ManifestInvalid, NotEnoughDisk, NotFound, UsageError
from mesh.sizes import format_size
from mesh.swarm import metainfo
from mesh.swarm.twins import encoding_of, twin_torrent
from mesh.weights.checkpoints.checkpoint import open_checkpoint
from mesh.weights.checkpoints.quantize import quantized
from mesh.weights.checkpoints.small_files import Terms
from mesh.weights.checkpoints.source_digest import METHOD, files_digest, model_digest
from mesh.weights.disk import naming_full_disk
from mesh.weights.releases.file_tree import open_files
from mesh.weights.releases.release import MANIFEST_FILE, TEXT_FILES, TORRENT_FILE, TWIN_TORRENT_FILE
from mesh.weights.releases.unfinished import Wish, unfinished
from mesh.weights.shards import contents
from mesh.weights.shards.contents import Content
from mesh.weights.shards.encoding import twin_file
from mesh.weights.shards.shard import PIECE_LENGTH, FileRange, WrittenShard, data_root
from mesh.weights.shards.shard_writing import Counter, Progress, num_threads, on_all_cores, write_all
from mesh.weights.shards.v1_pieces import V1PieceHasher
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
from mesh.weights.trust.signing import PrivateKey, sign_manifest

Kind = Literal["model", "files"]

FILES_AUX = (
    "release-aux.safetensors"  # `aux` alone is a device's name on Windows, and lies among a publisher's own
)
MAX_PIECES = 200_000  # 32 bytes each; libtorrent reads a .torrent of 10 MB at most


def pack_release(
    source: Path,
    out: Path,
    license_id: str,
    license_text: bytes | None,
    key: PrivateKey,
    name: str | None = None,
    created: str | None = None,
    quantize: str | None = None,
    encode: bool = False,
    progress: Progress = lambda done, total: None,
    *,
    kind: Kind = "model",
    notice: bytes | None = None,
    policy: bytes | None = None,
    copy: bool = False,
    private: bool = False,
    hybrid: bool = False,
    web_seeds: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Write the release to ``out``, a directory that does not exist or is empty.

    ``license_text`` may be None for a bundled license or one that lies beside the weights; ``notice`` and ``policy`` are
    taken from there too. ``created`` is RFC 3339 in UTC; else SOURCE_DATE_EPOCH, else now. ``quantize`` is one of
    ``quantize.KINDS``; the manifest says so. Files are linked into the release unless ``copy``. ``say`` gets a line when an
    interrupted run is gone on with, or can be. A licence that has to be accepted makes the torrent private; ``private``
    forces it. ``hybrid`` adds v1 hashes, ``web_seeds`` go into the .torrent.

    Raises UsageError, CheckpointUnsupported, NotFound, NotEnoughDisk. Nothing is left behind but what is worth going on
    from (``unfinished.py``).
    """
    _check_out(out, source)
    given = Terms(license_text, notice, policy)

    def terms(found: Terms) -> Licensed:
        return licensed(license_id, given, found)

    draft = (
        _files_draft(source, copy, terms)
        if kind == "files"
        else _model_draft(source, quantize, encode, terms)
    )
    draft = replace(
        draft,
        name=draft.name if name is None else name,
        private=private or draft.license.acceptance_required,
    )
    begun = created if created is not None else creation_time(os.environ, time.time())
    draft.check(begun)
    wish: Wish = {
        "version": __version__,
        "arguments": [kind, draft.name, created, quantize, encode, copy, *asdict(draft.license).values()],
        "source": _stamp(draft.source_files),
    }
    count = Counter(progress, sum(content.nbytes for content in draft.contents) + draft.rest_bytes)
    with unfinished(out, draft.name, wish, begun, say) as release:
        _check_disk(out, draft, release.kept, linked=kind == "files" and not copy)
        written = write_all(
            draft.contents,
            release.files,
            release.kept,
            lambda content, shard: release.record(content.file, shard),
            count,
            1 if encode else num_threads(),  # encoding has threads of its own
        )
        shards = [
            ShardRef(content.role, content.layer, content.file, shard.size, shard.root.hex())
            for content, shard in zip(draft.contents, written, strict=True)
        ]
        twins = {
            EncodedShard(ref.file, twin_file(ref.file), shard.twin.size, shard.twin.root.hex()): shard.twin
            for ref, shard in zip(shards, written, strict=True)
            if shard.twin is not None
        }
        digest = draft.source_digest(shards, written, count)
        if _stamp(draft.source_files) != wish["source"]:
            raise UsageError(f"{source} changed while it was packed; pack it again")
        pieces = _v1_pieces(release.files, shards, draft.piece_length) if hybrid else None
        manifest = draft.manifest(shards, digest, release.created, list(twins), pieces)
        layers = {shard.root: shard.piece_layer for shard in written}
        _write(
            release.directory / TORRENT_FILE,
            metainfo.build_torrent(metainfo.info_of(manifest, pieces), layers, web_seeds),
        )
        for encoding in manifest.encodings:
            _write(release.directory / TWIN_TORRENT_FILE, twin_torrent(encoding, twins))
        for file, text in draft.texts.items():
            _write(release.directory / file, text)
        _write(release.directory / MANIFEST_FILE, sign_manifest(manifest, key))
    return manifest


def digest_of_source(source: Path, kind: Kind, progress: Progress) -> str:
    """What a release made of ``source`` records in its provenance, without making one."""
    if kind == "files":
        tree = open_files(source)
        count = Counter(progress, sum(file.size for file in tree.files))
        return files_digest(on_all_cores(lambda file: contents.plain_ref(file, count), tree.files))
    checkpoint = open_checkpoint(source)
    count = Counter(progress, checkpoint.weight_bytes)
    roots = on_all_cores(lambda sources: data_root(sources, count).hex(), checkpoint.shards.values())
    return model_digest(
        checkpoint.source_files, checkpoint.carried, dict(zip(checkpoint.shards, roots, strict=True)), count
    )


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
        info = metainfo.build_info(self.name, self.piece_length, self.private, _files(shards), v1_pieces)
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


def _model_draft(
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


def _files_draft(source: Path, copy: bool, terms: Callable[[Terms], Licensed]) -> Draft:
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


def _stamp(files: Sequence[Path]) -> list[list[str | int]]:
    """What changes when somebody writes into one of the files."""
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _check_out(out: Path, source: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists and is not an empty directory; choose another --out")
    if not out.absolute().parent.is_dir():
        raise NotFound(f"{out.absolute().parent} does not exist; make it, or choose another --out")
    if out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{out} is inside {source}; choose an --out beside it")


def _check_disk(out: Path, draft: Draft, kept: Mapping[str, WrittenShard], *, linked: bool) -> None:
    parent = out.absolute().parent
    # Links take no room; where none can be made the disk tells while it is copied to.
    written = [c for c in draft.contents if c.file not in kept and not (linked and c.role == "file")]
    needed = sum(content.nbytes for content in written) * (2 if draft.encode else 1)
    if (free := shutil.disk_usage(parent).free) < needed:
        raise NotEnoughDisk(
            f"{parent}: {format_size(needed)} needed, {format_size(free)} free; choose another --out"
        )


def _write(path: Path, data: bytes) -> None:
    with naming_full_disk(path), path.open("xb") as file:
        file.write(data)


def _files(shards: Sequence[ShardRef]) -> list[metainfo.TorrentFile]:
    return [metainfo.TorrentFile(ref.file, ref.size, bytes.fromhex(ref.root)) for ref in shards]


def _v1_pieces(directory: Path, shards: Sequence[ShardRef], piece_length: int) -> bytes:
    """A pass of its own over the finished files: shards kept from an interrupted run have no v1 hashes."""

    def pieces_of(file: metainfo.TorrentFile) -> bytes:
        hasher, buffer = V1PieceHasher(piece_length), memoryview(bytearray(1 << 20))
        with (directory / file.path).open("rb", buffering=0) as opened:
            while read := opened.readinto(buffer):
                hasher.update(buffer[:read])
        return hasher.pieces()

    return b"".join(on_all_cores(pieces_of, sorted(_files(shards), key=metainfo.v1_order)))
