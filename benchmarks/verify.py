"""`mesh verify` against `sha256sum`, one process per core, on the same files: bytes per second, interleaved.

    python -m benchmarks.verify [--mib 256] [--files 4] [--rounds 5] [--out FILE.json]

Shared machines drift, so the contenders take turns and the ratio of medians is what counts. Many builds of ``sha256sum``
do not use the processor's SHA instructions; ``openssl-in-parallel`` reads the same files through OpenSSL's SHA-256, one
thread per core, as fast as one pass can be here. The files are in the page cache: a disk would hide what is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mesh.weights.shards.merkle import RootHasher
from mesh.weights.shards.shard_check import check_shards, usable_cores
from mesh.weights.trust.manifest import ShardRef

Shards = Sequence[tuple[Path, ShardRef]]
MIB = 1024 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=256, help="of each file")
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    cores = usable_cores()
    with tempfile.TemporaryDirectory() as scratch:
        shards = [_write(Path(scratch) / f"file-{n}", options.mib * MIB) for n in range(options.files)]
        speeds = measure(shards, cores, options.rounds)
    result = summary(speeds, cores, options.mib * options.files * MIB)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(line_of(result))


def measure(shards: Shards, cores: int, rounds: int) -> dict[str, list[float]]:
    """Bytes per second of each contender, after one warm-up."""
    contenders = {name: run for name, run in CONTENDERS.items() if name != "sha256sum" or shutil.which(name)}
    total = sum(ref.size for _, ref in shards)
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            contenders[name](shards, cores)
            if turn:
                speeds[name].append(total / (time.perf_counter() - began))
    return speeds


def summary(speeds: dict[str, list[float]], cores: int, total_bytes: int) -> dict[str, object]:
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    return {
        "schema": "llama-mesh.bench.verify/1",
        "cores": cores,
        "bytes": total_bytes,
        "bytes_per_second": medians,
        "ratio": {name: medians["mesh"] / speed for name, speed in medians.items() if name != "mesh"},
    }


def line_of(result: dict[str, object]) -> str:
    medians, ratios = result["bytes_per_second"], result["ratio"]
    assert isinstance(medians, dict)
    assert isinstance(ratios, dict)
    against = ", ".join(f"{ratio:.2f} x {name} ({medians[name] / 1e6:.0f})" for name, ratio in ratios.items())
    return f"verify on {result['cores']} cores: {medians['mesh'] / 1e6:.0f} MB/s; {against}"


def _mesh(shards: Shards, cores: int) -> None:
    assert all(checked.problem is None for checked in check_shards(shards, cores=cores))


def _sha256sum(shards: Shards, cores: int) -> None:
    names = b"\0".join(os.fsencode(path) for path, _ in shards)
    subprocess.run(
        ["xargs", "-0", "-n1", f"-P{cores}", "sha256sum"], input=names, check=True, stdout=subprocess.DEVNULL
    )


def _openssl(shards: Shards, cores: int) -> None:
    def digest(path: Path) -> bytes:
        hasher, buffer = hashlib.sha256(), memoryview(bytearray(MIB))
        with path.open("rb", buffering=0) as file:
            while read := file.readinto(buffer):
                hasher.update(buffer[:read])
        return hasher.digest()

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(digest, [path for path, _ in shards]))


CONTENDERS: dict[str, Callable[[Shards, int], None]] = {
    "mesh": _mesh,
    "sha256sum": _sha256sum,
    "openssl-in-parallel": _openssl,
}


def _write(path: Path, size: int) -> tuple[Path, ShardRef]:
    hasher = RootHasher()
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(data := os.urandom(MIB))
            hasher.update(data)
    return path, ShardRef("file", None, path.name, size, hasher.root().hex())


if __name__ == "__main__":
    sys.exit(main())
