"""Many shards checked by all cores: each byte read and hashed once, whatever the sizes.

The cores work on ranges of 8 MiB, so one large shard keeps them as busy as many small ones. A range gives one node of
the shard's tree; memory is a buffer per core and 32 bytes per range. Shards come out in the order they went in.

    for checked in check_shards([(path, ref), …]):
        checked.problem

Nothing but a plain file is read: neither a symbolic link nor a pipe or device is followed or waited for. Knows files and
roots; what is to be seen in the bytes on their way (``tensor_scan.py``) is handed in.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mesh.errors import IntegrityError, MeshError, NotFound, ShardCorrupt
from mesh.weights.shards import tensor_file
from mesh.weights.shards.merkle import BLOCK_BYTES, climb, leaves_of, root_of
from mesh.weights.shards.shard import CHUNK_BYTES, check_root, header_of
from mesh.weights.shards.tensor_file import ShardHeader
from mesh.weights.trust.manifest import ShardRef

RANGE_LEVELS = 9
RANGE_BYTES = BLOCK_BYTES << RANGE_LEVELS  # 8 MiB, and so a header lies whole in the first range
RANGES_PER_CORE = 4  # waiting, so that no core does: benchmarks/verify.py
OVERLAP_BYTES = 256  # read beyond a chunk, so that a number or a block that begins in it is seen whole

# What is in a chunk: header, where in the file it begins, its bytes with the overlap, how many are its own.
Scan = Callable[[ShardHeader, int, memoryview, int], Sequence[str]]


@dataclass(frozen=True, slots=True)
class CheckedShard:
    ref: ShardRef
    header: ShardHeader | None  # None of a plain file, and of a shard with a problem
    problem: MeshError | None
    remarks: tuple[str, ...] = ()  # what ``scan`` had to say, of a shard without a problem
    is_held: bool = True  # False: nobody looked, since it is not meant to be here


def usable_cores() -> int:
    """Those this process may run on, which a container or ``taskset`` may have reduced."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_shards(
    shards: Sequence[tuple[Path, ShardRef]],
    on_bytes: Callable[[int], None] = lambda _: None,
    *,
    scan: Scan | None = None,
    cores: int | None = None,
) -> Iterator[CheckedShard]:
    """Check every shard as ``shard.check_shard`` does; ``on_bytes`` is told what was hashed, in this thread."""
    cores = cores or usable_cores()
    pool = ThreadPoolExecutor(cores, thread_name_prefix="verify")
    waiting: deque[tuple[_Reading, Future[_Range] | None]] = deque()

    def collect() -> Iterator[CheckedShard]:
        reading, future = waiting.popleft()
        if future is not None:
            on_bytes(reading.take(future))
        if reading.is_complete:
            yield reading.finish()

    try:
        for path, ref in shards:
            reading = _Reading.begin(path, ref, scan)
            for start in reading.range_starts() if reading.problem is None else ():
                waiting.append((reading, pool.submit(reading.hash_range, start, scan)))
                while len(waiting) >= cores * RANGES_PER_CORE:
                    yield from collect()
            if reading.is_complete:
                waiting.append((reading, None))  # nothing of it can be read; it keeps its place
        while waiting:
            yield from collect()
    finally:
        pool.shutdown(cancel_futures=True)
        for reading, _ in waiting:
            reading.close()


@dataclass(frozen=True, slots=True)
class _Range:
    nodes: bytes  # one node, or all leaves of a shard that is one range
    size: int
    start: bytes  # the first bytes of the file, of its first range
    remarks: list[str]


@dataclass(slots=True)
class _Reading:
    """A shard while its ranges are hashed; closed as soon as the last one was taken."""

    ref: ShardRef
    fd: int = -1
    problem: MeshError | None = None
    early_header: ShardHeader | None = (
        None  # read before its root was; what was seen by it counts only afterwards
    )
    nodes: bytearray = field(default_factory=bytearray)
    size: int = 0
    start: bytes = b""
    taken: int = 0
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, path: Path, ref: ShardRef, scan: Scan | None) -> _Reading:
        reading = cls(ref)
        try:
            reading.fd = open_plain(path, f"shard {ref.file}")
            # Size before content: a file of another size is refused unread.
            if (size := os.fstat(reading.fd).st_size) != ref.size:
                raise ShardCorrupt(ref.file, f"{ref.size} bytes", f"{size} bytes")
        except MeshError as exc:
            reading.problem, reading.taken = exc, len(reading.range_starts())
            reading.close()
            return reading
        if scan is not None and ref.role != "file":
            reading.early_header = reading._read_header()
        return reading

    @property
    def is_complete(self) -> bool:
        return self.taken == len(self.range_starts())

    def range_starts(self) -> range:
        return range(0, max(1, self.ref.size), RANGE_BYTES)

    def hash_range(self, start: int, scan: Scan | None) -> _Range:
        """In a thread of the pool; hashing lets the others run."""
        stop = min(start + RANGE_BYTES, self.ref.size)
        buffer = memoryview(bytearray(CHUNK_BYTES + OVERLAP_BYTES))
        leaves: list[bytes] = []
        remarks: list[str] = []
        first, at = b"", start
        while at < stop:
            wanted = min(CHUNK_BYTES, stop - at)
            ahead = OVERLAP_BYTES if scan is not None else 0
            read = _read_fully(self.fd, buffer[: wanted + ahead], at)
            own = min(read, wanted)
            leaves.append(leaves_of(buffer[:own]))
            if at == 0:
                first = bytes(buffer[:own])
            elif at < tensor_file.MAX_HEADER_BYTES + 8:
                first += bytes(buffer[:own])
            if scan is not None and self.early_header is not None:
                remarks += scan(self.early_header, at, buffer[:read], own)
            at += own
            if own < wanted:  # it shrank under our hands
                break
        nodes = b"".join(leaves)
        if self.ref.size > RANGE_BYTES:
            nodes = climb(nodes, RANGE_LEVELS)
        return _Range(nodes, at - start, first, remarks)

    def take(self, future: Future[_Range]) -> int:
        """Add the next range in order; how many bytes it has."""
        self.taken += 1
        try:
            done = future.result()
        except OSError as exc:
            self.problem = self.problem or IntegrityError(
                f"shard {self.ref.file}: cannot be read, {exc.strerror or exc}; fetch it again"
            )
            return 0
        self.nodes += done.nodes
        self.size += done.size
        self.start = self.start or done.start
        self.remarks += done.remarks
        return done.size

    def finish(self) -> CheckedShard:
        try:
            if self.problem is not None:
                raise self.problem
            levels = RANGE_LEVELS if self.ref.size > RANGE_BYTES else 0
            size = max(self.size, os.fstat(self.fd).st_size)  # it may have grown
            check_root(size, root_of(bytes(self.nodes), levels) if self.nodes else None, self.ref)
            header = None if self.ref.role == "file" else header_of(self.start, self.ref)
            return CheckedShard(self.ref, header, None, tuple(dict.fromkeys(self.remarks)))
        except MeshError as exc:
            return CheckedShard(self.ref, None, exc)
        finally:
            self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _read_header(self) -> ShardHeader | None:
        """None if there is none; ``finish`` says why."""
        try:
            first = os.pread(self.fd, 8, 0)
            data = os.pread(self.fd, tensor_file.header_length(first, self.ref.size), 0)
            return tensor_file.parse(data, self.ref.size)
        except (OSError, ValueError):
            return None


def open_plain(path: Path, what: str) -> int:
    """A descriptor of a regular file that is no symbolic link. Raises NotFound, IntegrityError or MeshError."""
    try:
        # Not blocking: a pipe would be waited for before anybody could see that it is one.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise NotFound(f"{what}: {path} does not exist; fetch it first") from exc
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.EMLINK):
            raise IntegrityError(
                f"{what}: {path} is a symbolic link; a release holds its files itself, fetch it again"
            ) from exc
        if exc.errno in (errno.ENXIO, errno.ENOTDIR):
            raise IntegrityError(f"{what}: {path} is not a plain file; remove it and fetch it again") from exc
        raise MeshError(f"{what}: {path}: {exc.strerror}") from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise IntegrityError(f"{what}: {path} is not a plain file; remove it and fetch it again")
    return fd


def _read_fully(fd: int, buffer: memoryview, at: int) -> int:
    """Bytes read at ``at``: as many as there are, up to the buffer."""
    done = 0
    while done < len(buffer) and (read := os.preadv(fd, [buffer[done:]], at + done)):
        done += read
    return done
