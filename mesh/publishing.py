"""Publish: a checkpoint in, a signed release out.

    pack_release(Path("model.gguf"), Path("release"), "apache-2.0", None, key)

Everything is checked before anything is written. The release is written beside ``out`` and renamed into place when it
is whole, so that nobody ever sees half of one. Memory is bounded by the largest tensor, never by the model, and the same
input gives the same shards on every machine.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from mesh import __version__, strict_json
from mesh.errors import ManifestInvalid, NotEnoughDisk, NotFound, UsageError
from mesh.sizes import format_size
from mesh.swarm import metainfo
from mesh.swarm.twins import encoding_of, twin_torrent
from mesh.weights.checkpoint import Checkpoint, open_checkpoint
from mesh.weights.disk import naming_full_disk
from mesh.weights.encoding import SUFFIX, TwinWriter, twin_file
from mesh.weights.layout import Place
from mesh.weights.license_text import resolve_license
from mesh.weights.manifest import EncodedShard, LicenseRef, Manifest, Provenance, ShardRef, TorrentRef
from mesh.weights.quantize import quantized
from mesh.weights.release import MANIFEST_FILE, TORRENT_FILE, TWIN_TORRENT_FILE
from mesh.weights.shard import TensorSource, WrittenShard, write_shard
from mesh.weights.signing import PrivateKey, sign_manifest

PIECE_LENGTH = 4 * 1024 * 1024  # 130 GB are some 31 000 pieces; 1 and 16 MiB were no faster

Progress = Callable[[int, int], None]  # bytes done, bytes in all


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
) -> Manifest:
    """Write the release to ``out``, a directory that does not exist or is empty.

    With ``encode`` shards also get twins for slow links where those save something (``mesh.weights.encoding``).
    ``license_text`` may be None for a bundled license or one that lies beside the weights. ``created`` is RFC 3339 in
    UTC; else SOURCE_DATE_EPOCH, else now. ``quantize`` is one of ``quantize.KINDS``; the manifest says so. Raises UsageError, CheckpointUnsupported, NotFound, NotEnoughDisk;
    whatever is raised, nothing is left behind.
    """
    _check_out(out)
    checkpoint = open_checkpoint(source)
    if quantize is not None:
        checkpoint = quantized(checkpoint, quantize)
    license_id, text, is_open = resolve_license(license_id, license_text, checkpoint.license_text)
    draft = Draft(
        checkpoint=checkpoint,
        name=name if name is not None else checkpoint.name,
        license=LicenseRef(license_id, hashlib.sha256(text).hexdigest(), acceptance_required=not is_open),
        license_text=text,
        created=created if created is not None else creation_time(os.environ, time.time()),
        tool=f"llama-mesh {__version__}" + (f" pack --quantize {quantize}" if quantize is not None else ""),
        encode=encode,
    )
    draft.check()
    count = _counter(progress, checkpoint.source_bytes + checkpoint.weight_bytes)
    with _replacing(out, checkpoint.weight_bytes * (2 if encode else 1)) as directory:
        written, twins = _write_shards(draft, directory, count)
        manifest = draft.manifest(list(written), checkpoint.source_digest(count), list(twins))
        layers = {shard.root: shard.piece_layer(PIECE_LENGTH) for shard in written.values()}
        _write(directory / TORRENT_FILE, metainfo.build_torrent(metainfo.info_of(manifest), layers))
        for encoding in manifest.encodings:
            _write(directory / TWIN_TORRENT_FILE, twin_torrent(encoding, twins))
        _write(directory / MANIFEST_FILE, sign_manifest(manifest, key))
    return manifest


@dataclass(frozen=True, slots=True)
class Draft:
    """Everything a manifest says except what only the written shards know."""

    checkpoint: Checkpoint
    name: str
    license: LicenseRef
    license_text: bytes
    created: str
    tool: str  # with the arguments that changed the weights
    encode: bool

    def places(self) -> Iterator[tuple[Place, tuple[TensorSource, ...]]]:
        """What goes into each shard, in the manifest's order."""
        yield from self.checkpoint.shards.items()
        files = {
            **self.checkpoint.aux_files,
            "config.json": strict_json.dumps(self.checkpoint.config.to_json()),
            "LICENSE": self.license_text,
        }
        yield ("aux", None), tuple(TensorSource.of_bytes(name, data) for name, data in files.items())

    def manifest(
        self, shards: Sequence[ShardRef], source_digest: str, twins: Sequence[EncodedShard] = ()
    ) -> Manifest:
        files = [metainfo.TorrentFile(ref.file, ref.size, bytes.fromhex(ref.root)) for ref in shards]
        info = metainfo.build_info(self.name, PIECE_LENGTH, True, files)
        return Manifest(
            name=self.name,
            family="llama",
            model=self.checkpoint.config,
            quantization=self.checkpoint.quantization,
            shards=tuple(shards),
            torrent=TorrentRef(self.name, PIECE_LENGTH, private=True, infohash=metainfo.infohash(info)),
            license=self.license,
            provenance=Provenance(self.checkpoint.source.name, source_digest, self.tool),
            created=self.created,
            encodings=(encoding_of(self.name, PIECE_LENGTH, True, twins),) if twins else (),
        )

    def check(self) -> None:
        """Find a name, license id or time that breaks a rule now, not after hours of writing. Raises UsageError."""
        shards = [ShardRef(*place, shard_file(place), 1, "0" * 64) for place, _ in self.places()]
        twins = [EncodedShard(ref.file, twin_file(ref.file), 1, "0" * 64) for ref in shards]
        try:
            self.manifest(shards, "0" * 64, twins if self.encode else ())
        except ManifestInvalid as exc:
            raise UsageError(str(exc)) from exc


def shard_file(place: Place) -> str:
    """``("layer", 3)`` -> ``layer-00003.safetensors``."""
    role, layer = place
    return f"{role}.safetensors" if layer is None else f"{role}-{layer:05d}.safetensors"


def creation_time(environment: Mapping[str, str], now: float) -> str:
    """SOURCE_DATE_EPOCH (https://reproducible-builds.org/specs/source-date-epoch/) or ``now``, as RFC 3339."""
    epoch = environment.get("SOURCE_DATE_EPOCH", str(int(now)))
    if not re.fullmatch(r"\d{1,11}", epoch, re.ASCII):
        raise UsageError(f"SOURCE_DATE_EPOCH {epoch[:40]!r}: expected seconds since 1970")
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(epoch)))


def _write_shards(
    draft: Draft, directory: Path, count: Callable[[int], None]
) -> tuple[dict[ShardRef, WrittenShard], dict[EncodedShard, WrittenShard]]:
    """Every shard, and the twins of those that gain by one."""
    shards, twins = directory / draft.name, directory / (draft.name + SUFFIX)
    shards.mkdir()
    if draft.encode:
        twins.mkdir()
    written: dict[ShardRef, WrittenShard] = {}
    encoded: dict[EncodedShard, WrittenShard] = {}
    for (role, layer), sources in draft.places():
        file = shard_file((role, layer))
        with TwinWriter(twins / twin_file(file)) if draft.encode else nullcontext() as twin:
            shard = write_shard(
                shards / file, role, layer, sources, draft.license.text_digest, count, follower=twin
            )
        written[ShardRef(role, layer, file, shard.size, shard.root.hex())] = shard
        if twin is not None and (smaller := twin.written) is not None:
            encoded[EncodedShard(file, twin_file(file), smaller.size, smaller.root.hex())] = smaller
    if draft.encode and not encoded:
        twins.rmdir()
    return written, encoded


def _check_out(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists and is not an empty directory; choose another --out")
    if not out.absolute().parent.is_dir():
        raise NotFound(f"{out.absolute().parent} does not exist; make it, or choose another --out")


@contextmanager
def _replacing(out: Path, weight_bytes: int) -> Iterator[Path]:
    """A new directory that becomes ``out`` when the block ends well, and goes away when it does not."""
    parent = out.absolute().parent
    if (free := shutil.disk_usage(parent).free) < weight_bytes:
        raise NotEnoughDisk(
            f"{parent}: {format_size(weight_bytes)} needed, {format_size(free)} free; choose another --out"
        )
    directory = parent / f".{out.name}.packing-{secrets.token_hex(4)}"  # a sibling: renaming is atomic
    directory.mkdir()
    try:
        yield directory
        directory.rename(out)
    except BaseException:  # Ctrl-C and SIGTERM too
        shutil.rmtree(directory)
        raise


def _write(path: Path, data: bytes) -> None:
    with naming_full_disk(path), path.open("xb") as file:
        file.write(data)


def _counter(progress: Progress, total: int) -> Callable[[int], None]:
    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress(min(done, total), total)  # the aux shard comes on top of the weights

    return count
