"""Publish: a checkpoint in, or a directory of any files, and a signed release out.

    pack_release(Path("model.gguf"), Path("release"), "apache-2.0", None, key)

Everything is checked before anything is written. The release is written beside ``out`` and renamed into place when it
is whole, so that nobody ever sees half of one; a run that was interrupted goes on where it stopped. All cores write, memory
is bounded by chunks of tensors, never by the model, no byte is hashed twice, and the same input gives the same shards on
every machine.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from mesh import __version__
from mesh.errors import NotEnoughDisk, NotFound, UsageError
from mesh.release_draft import (
    Draft,
    Licensed,
    creation_time,
    files_draft,
    licensed,
    model_draft,
    torrent_files,
)
from mesh.sizes import format_size
from mesh.swarm import metainfo
from mesh.swarm.twins import twin_torrent
from mesh.weights.checkpoints.checkpoint import open_checkpoint
from mesh.weights.checkpoints.small_files import Terms
from mesh.weights.checkpoints.source_digest import files_digest, model_digest
from mesh.weights.disk import naming_full_disk
from mesh.weights.releases.file_tree import open_files
from mesh.weights.releases.release import MANIFEST_FILE, TORRENT_FILE, TWIN_TORRENT_FILE
from mesh.weights.releases.unfinished import Wish, unfinished
from mesh.weights.shards import contents
from mesh.weights.shards.encoding import twin_file
from mesh.weights.shards.shard import WrittenShard, data_root
from mesh.weights.shards.shard_writing import Counter, Progress, num_threads, on_all_cores, write_all
from mesh.weights.shards.v1_pieces import V1PieceHasher
from mesh.weights.trust.manifest import (
    EncodedShard,
    Manifest,
    ShardRef,
)
from mesh.weights.trust.signing import PrivateKey, sign_manifest

Kind = Literal["model", "files"]


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
        files_draft(source, copy, terms) if kind == "files" else model_draft(source, quantize, encode, terms)
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


def _v1_pieces(directory: Path, shards: Sequence[ShardRef], piece_length: int) -> bytes:
    """A pass of its own over the finished files: shards kept from an interrupted run have no v1 hashes."""

    def pieces_of(file: metainfo.TorrentFile) -> bytes:
        hasher, buffer = V1PieceHasher(piece_length), memoryview(bytearray(1 << 20))
        with (directory / file.path).open("rb", buffering=0) as opened:
            while read := opened.readinto(buffer):
                hasher.update(buffer[:read])
        return hasher.pieces()

    return b"".join(on_all_cores(pieces_of, sorted(torrent_files(shards), key=metainfo.v1_order)))
