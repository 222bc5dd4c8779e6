"""How fast packing is beside one pass of SHA-256 over the same bytes on the same cores, and how much memory it takes.

    python -m benchmarks.pack                       # speed: a safetensors checkpoint of 1 GB, packed and hashed in turns
    python -m benchmarks.pack --memory              # memory: shapes of 70B, one layer, in five ways of packing
    python -m benchmarks.pack --directory /dev/shm  # where the files are to lie

The pass of SHA-256 reads the checkpoint in ranges of the shards' size, as many at a time as there are cores. Rounds take
turns, what is compared is the ratio of each round's neighbours, and the median counts. Memory is the peak of the process
that packs (``ru_maxrss``), the interpreter and its libraries included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mesh.publishing import pack_release
from mesh.sizes import format_size
from mesh.weights.checkpoints.checkpoint import file_chunks
from mesh.weights.shards.shard_check import usable_cores
from mesh.weights.trust.signing import PrivateKey
from tests.support.big_checkpoints import BigShape, write_big_hf, write_big_meta

SPEED_SHAPE = BigShape(hidden_size=2048, intermediate_size=8192, num_layers=8, vocab_size=32000)
SHAPE_70B = BigShape(hidden_size=8192, intermediate_size=28672, num_layers=1, vocab_size=32000)
ROOM_BYTES = 300 * 1024 * 1024


def sha256_pass(path: Path, cores: int) -> float:
    size = path.stat().st_size
    part = 64 * 1024 * 1024

    def hash_part(start: int) -> bytes:
        digest = hashlib.sha256()
        for chunk in file_chunks(path, start, min(part, size - start)):
            digest.update(chunk)
        return digest.digest()

    began = time.perf_counter()
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(hash_part, range(0, size, part)))
    return time.perf_counter() - began


def pack_once(source: Path, out: Path, **options: Any) -> float:
    began = time.perf_counter()
    pack_release(source, out, "Apache-2.0", None, PrivateKey.from_seed(bytes(32)), **options)
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def measure_speed(directory: Path, rounds: int) -> dict[str, Any]:
    source = write_big_hf(directory / "source", SPEED_SHAPE, sparse=False)
    weights, cores = source / "model.safetensors", usable_cores()
    found: dict[str, list[float]] = {"sha256": [], "pack": [], "pack --as files": []}
    sha256_pass(weights, cores)  # warm
    for _ in range(rounds):
        found["sha256"].append(sha256_pass(weights, cores))
        found["pack"].append(pack_once(source, directory / "out"))
        found["pack --as files"].append(pack_once(source, directory / "out", kind="files"))
    size = weights.stat().st_size
    ratios = {
        name: statistics.median(hashed / took for hashed, took in zip(found["sha256"], times, strict=True))
        for name, times in found.items()
    }
    print(f"{format_size(size)} in {directory}, {cores} cores, {rounds} rounds in turns")
    for name, times in found.items():
        print(
            f"  {name:<16} {size / statistics.median(times) / 1e6:7.0f} MB/s   {100 * ratios[name]:4.0f} % of SHA-256"
        )
    return {"bytes": size, "cores": cores, "seconds": found, "ratios": ratios}


WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "safetensors": (write_big_hf, {}),
    "safetensors, q8_0": (write_big_hf, {"quantize": "q8_0"}),
    "safetensors, q4_1": (write_big_hf, {"quantize": "q4_1"}),
    "Meta, 8 ranks": (write_big_meta, {}),
    "Meta, 8 ranks, q4_1": (write_big_meta, {"quantize": "q4_1"}),
}


def measure_memory(directory: Path) -> dict[str, Any]:
    bound = 3 * SHAPE_70B.largest_tensor_bytes + ROOM_BYTES
    found = {}
    print(f"largest tensor {format_size(SHAPE_70B.largest_tensor_bytes)}, bound {format_size(bound)}")
    for name, (write, options) in WAYS.items():
        source = write(directory / "source", SHAPE_70B)
        command = [sys.executable, "-m", "benchmarks.pack", "--one", str(source), json.dumps(options)]
        ran = subprocess.run(
            [*command, "--directory", str(directory)], check=True, capture_output=True, text=True
        )
        found[name] = json.loads(ran.stdout)
        shutil.rmtree(source)
        print(
            f"  {name:<20} {format_size(found[name]['peak'])} in {found[name]['seconds']:.0f} s", flush=True
        )
    return {"bound": bound, "ways": found, "ok": all(way["peak"] < bound for way in found.values())}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, help="also write what was found to this file")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        seconds = pack_once(Path(given.one[0]), given.directory / "out", **json.loads(given.one[1]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"peak": peak, "seconds": seconds}))
        return 0
    with tempfile.TemporaryDirectory(dir=given.directory, prefix="bench-pack-") as name:
        found = measure_memory(Path(name)) if given.memory else measure_speed(Path(name), given.rounds)
    if given.json is not None:
        given.json.write_text(json.dumps({**found, "machine": os.uname().machine}, indent=1) + "\n")
    return 0 if found.get("ok", True) else 1


if __name__ == "__main__":
    sys.exit(main())
