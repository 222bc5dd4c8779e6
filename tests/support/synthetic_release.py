"""Small releases of random bytes: what the swarm moves does not have to be a model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.architecture import LlamaConfig, RopeConfig
from mesh.swarm.metainfo import TorrentFile, build_info, build_torrent, hybrid_ref, infohash, v1_order
from mesh.weights.shards.merkle import RootHasher
from mesh.weights.shards.shard import TensorSource, WrittenShard, write_shard
from mesh.weights.shards.v1_pieces import V1PieceHasher
from mesh.weights.trust.manifest import LicenseRef, Manifest, Provenance, ShardRef, TorrentRef

KIB = 1024
_DIGEST = "0" * 64
_HEADER_BYTES = 16 * KIB  # of a shard that holds one tensor
# Around every border of BEP 52: a block is 16 KiB, a piece here 64 KiB.
ODD_SIZES = (5, 16 * KIB, 16 * KIB + 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 200_000, 256 * KIB, 7)


@dataclass(frozen=True, slots=True)
class SyntheticRelease:
    directory: Path  # the save_path of a seeder
    manifest: Manifest
    torrent: bytes

    def path(self, ref: ShardRef) -> Path:
        return self.directory / self.manifest.torrent.name / ref.file


def write_release(
    directory: Path,
    sizes: Sequence[int] = ODD_SIZES,
    *,
    name: str = "tiny",
    piece_length: int = 64 * KIB,
    private: bool = True,
    hybrid: bool = False,
    seed: int = 0,
) -> SyntheticRelease:
    """Write one file per size (embed, layers, head, aux) and describe them in a manifest and a torrent.

    Files larger than a header of 16 KiB are shards that pass ``check_shard``; smaller ones are there for BEP 52 only.
    """
    (directory / name).mkdir(parents=True)
    rng = random.Random(seed)
    layers: dict[bytes, bytes] = {}
    refs = []
    for (role, layer, file), size in zip(_shards(len(sizes) - 3), sizes, strict=True):
        written = _write(directory / name / file, role, layer, size, rng, piece_length)
        layers[written.root] = written.piece_layer
        refs.append(ShardRef(role, layer, file, size, written.root.hex()))
    files = [TorrentFile(ref.file, ref.size, bytes.fromhex(ref.root)) for ref in refs]
    pieces = None
    if hybrid:
        hashers = {file.path: V1PieceHasher(piece_length) for file in sorted(files, key=v1_order)}
        for file, hasher in hashers.items():
            hasher.update((directory / name / file).read_bytes())
        pieces = b"".join(hasher.pieces() for hasher in hashers.values())
    info = build_info(name, piece_length, private, files, pieces)
    manifest = Manifest(
        name=name,
        family="llama",
        model=_config(len(sizes) - 3),
        quantization="F32",
        shards=tuple(refs),
        torrent=TorrentRef(
            name, piece_length, private, infohash(info), hybrid_ref(info, pieces) if pieces else None
        ),
        license=LicenseRef("Apache-2.0", _DIGEST, False),
        provenance=Provenance("random bytes", _DIGEST, "tests"),
        created="2026-01-01T00:00:00Z",
    )
    return SyntheticRelease(directory, manifest, build_torrent(info, layers))


def _write(
    path: Path, role: str, layer: int | None, size: int, rng: random.Random, piece_length: int
) -> WrittenShard:
    if size > _HEADER_BYTES:
        data = TensorSource.of_bytes("bytes", rng.randbytes(size - _HEADER_BYTES))
        return write_shard(path, role, layer, [data], _DIGEST, piece_length=piece_length)
    path.write_bytes(data := rng.randbytes(size))
    hasher = RootHasher()
    hasher.update(data)
    return WrittenShard(size, hasher.root(), hasher.piece_layer(piece_length))


def _shards(num_layers: int) -> list[tuple[str, int | None, str]]:
    return [
        ("embed", None, "embed.safetensors"),
        *(("layer", i, f"layer-{i:05d}.safetensors") for i in range(num_layers)),
        ("head", None, "head.safetensors"),
        ("aux", None, "aux.safetensors"),
    ]


def _config(num_layers: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_layers=num_layers,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        vocab_size=16,
        context_length=16,
        rms_norm_eps=1e-5,
        rope=RopeConfig(),
        tied=False,
        bos_token_id=None,
        eos_token_ids=(1,),
    )
