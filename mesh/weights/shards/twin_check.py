"""Whether the encoded twins that lie in a release are the ones its publisher signed, and of the shards they claim.

    problems = verify_twins(release, deep=True)

The root of every twin is checked; ``deep`` also decodes each and holds what comes out against the shard's root. A release
without twins, or one whose twins were deleted, has nothing to check.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mesh.errors import IntegrityError, MeshError, NotFound, ShardCorrupt
from mesh.weights.releases.release import Release
from mesh.weights.shards.encoding import CODEC, check_twin, num_workers
from mesh.weights.shards.merkle import RootHasher
from mesh.weights.shards.shard import CHUNK_BYTES, open_sized
from mesh.weights.trust.manifest import EncodedShard

Progress = Callable[[int, int], None]  # bytes done, bytes in all


def verify_twins(
    release: Release, *, deep: bool = False, progress: Progress = lambda done, total: None
) -> dict[EncodedShard, MeshError]:
    """What is wrong with which, on all cores; empty if nothing is."""
    paths = release.twin_paths()
    shards = {ref.file: ref for ref in release.manifest.shards}
    codec_of = {twin: encoding.codec for encoding in release.manifest.encodings for twin in encoding.shards}
    total = sum(twin.size + (shards[twin.of].size if deep else 0) for twin in paths)
    done, lock = 0, threading.Lock()

    def on_bytes(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            progress(done, total)

    def problem_of(twin: EncodedShard) -> MeshError | None:
        try:
            check_twin_root(paths[twin], twin, on_bytes)
            if deep and codec_of[twin] == CODEC:
                check_twin(paths[twin], twin, shards[twin.of], on_bytes)
        except (IntegrityError, NotFound) as exc:
            return exc
        return None

    with ThreadPoolExecutor(num_workers(), "verify") as pool:
        found = dict(zip(paths, pool.map(problem_of, paths), strict=True))
    return {twin: problem for twin, problem in found.items() if problem is not None}


def check_twin_root(path: Path, twin: EncodedShard, on_bytes: Callable[[int], None] = lambda _: None) -> None:
    """The twin's own bytes, as BitTorrent moves them. Raises NotFound or ShardCorrupt."""
    hasher, buffer = RootHasher(), memoryview(bytearray(CHUNK_BYTES))
    with open_sized(path, twin) as file:
        while (read := file.readinto(buffer)) and hasher.size <= twin.size:
            hasher.update(buffer[:read])
            on_bytes(read)
    if (root := hasher.root().hex()) != twin.root:
        raise ShardCorrupt(twin.file, f"root {twin.root}", f"root {root}")
