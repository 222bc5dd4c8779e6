"""Writing a release's files on all cores: each file by one thread, as many at a time as there are cores.

Hashing lets go of the interpreter's lock, so threads are enough. Memory is bounded by the few chunks that each thread
holds. Knows nothing of what is written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

from mesh.weights.shards.contents import Content
from mesh.weights.shards.shard import WrittenShard
from mesh.weights.shards.shard_check import usable_cores

MAX_THREADS = 8  # each takes memory for its chunks, and disks are no faster for more

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]  # bytes done, bytes in all


class _Stopped(Exception):
    """Another file failed, or somebody pressed Ctrl-C: this one is not wanted any more."""


class Counter:
    """Counts bytes for ``progress`` from any thread; never goes back and never beyond the total."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self._lock = threading.Lock()

    def __call__(self, num_bytes: int) -> None:
        with self._lock:
            self._done += num_bytes
            self._progress(min(self._done, self._total), self._total)


def num_threads() -> int:
    """One for each core this process may use, within reason."""
    return min(usable_cores(), MAX_THREADS)


def on_all_cores(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """``work`` of each, in their order."""
    with ThreadPoolExecutor(num_threads()) as pool:
        return list(pool.map(work, items))


def write_all(
    contents: Sequence[Content],
    directory: Path,
    kept: Mapping[str, WrittenShard],
    on_written: Callable[[Content, WrittenShard], None],
    count: Callable[[int], None],
    threads: int,
) -> list[WrittenShard]:
    """What became of each content, in their order; those in ``kept`` by name are there already.

    ``on_written`` is called in this thread, whenever a file is whole. If anything is raised, in here or in there, no
    thread still writes when it comes out.
    """
    stop = threading.Event()

    def on_bytes(num_bytes: int) -> None:
        if stop.is_set():
            raise _Stopped
        count(num_bytes)

    written = dict(kept)
    with ThreadPoolExecutor(threads, thread_name_prefix="pack") as pool:
        futures = {
            pool.submit(content.write, directory / content.file, on_bytes): content
            for content in sorted(
                contents, key=lambda content: -content.nbytes
            )  # so that all cores end together
            if content.file not in kept
        }
        try:
            for future in as_completed(futures):
                content = futures[future]
                written[content.file] = future.result()
                on_written(content, written[content.file])
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [written[content.file] for content in contents]
