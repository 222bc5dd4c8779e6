"""Encoded twins: the same shard in fewer bytes, for links that are slower than a processor.

    8 bytes      magic and version
    8 bytes      bytes of the shard
    chunks       each at most 4 MiB of the shard:
                   1 byte       width of a word: 1, 2 (bf16, fp16) or 4 (fp32)
                   4 bytes      bytes of the shard in this chunk, whole words
                   4 × width    stored bytes of each byte plane, the lowest first
                   the planes   one stored whole is as it is; a shorter one is a single zstd frame of exactly the plane

All integers are little-endian. A twin is written while its shard is (``TwinWriter`` follows ``write_shard``) and read in
one pass, so neither holds more than a few chunks per core. The shard's root stays its identity: zstd's output differs
between versions, so two publishers may make different twins of one shard, and whoever decodes checks the *shard's* root.

A twin comes from strangers. No length in it is believed before it was held against what the signed manifest says; no
frame is decompressed before its own header promised exactly the bytes that its plane has and a small window.

This module is the only door to zstandard. Knows nothing of torrents and of when a twin is worth fetching.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

import zstandard

from mesh.errors import ShardCorrupt
from mesh.weights.disk import naming_full_disk
from mesh.weights.shards import byteplanes
from mesh.weights.shards.merkle import RootHasher
from mesh.weights.shards.shard import PIECE_LENGTH, StreamedShard, WrittenShard, open_sized
from mesh.weights.shards.tensor_file import ShardHeader
from mesh.weights.shards.tensor_types import PLAIN_TYPES
from mesh.weights.trust.manifest import EncodedShard, ShardRef

CODEC = "byteplane-zstd/1"
SUFFIX = ".bpz"
CHUNK_BYTES = 4 * 1024 * 1024  # of the shard; smaller ones gain nothing, larger ones only take memory
MAX_WINDOW_BYTES = CHUNK_BYTES  # what a frame may ask a decoder to keep
MIN_SAVING = 0.03  # below that a plane stays as it is and a shard gets no twin
_PROBE_BYTES = 64 * 1024  # of a plane, compressed to see whether the rest is worth it
_GIVE_UP_BYTES = (
    64 * 1024 * 1024
)  # a shard that saved nothing so far will not: its largest tensors come first

_MAGIC = b"meshbpz\x01"
_HEAD = struct.Struct("<8sQ")
_CHUNK = struct.Struct("<BI")

# Floats have no repeated strings, so looking for matches costs time and, worse, bytes: what gains is Huffman's code
# alone. A hash table too small to find anything gives bf16 at 66.5 % (level 1: 68.2 %) and four times level 1's speed
# (benchmarks/encoding.py).
_FLOATS = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST, window_log=17, hash_log=6, min_match=7, write_content_size=True
)
# Tokenizers and licence texts do have them.
_OTHERS = zstandard.ZstdCompressionParameters.from_level(3, window_log=20, write_content_size=True)

Bytes = bytes | bytearray | memoryview


def twin_file(shard_file: str) -> str:
    """``layer-00003.safetensors`` -> ``layer-00003.bpz``."""
    return Path(shard_file).stem + SUFFIX


def num_workers() -> int:
    """Threads that encode or decode: one per core; numpy and zstd let go of the interpreter."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class TwinWriter:
    """Writes the twin of a shard while the shard is written: pass it to ``write_shard`` as ``follower``.

    Afterwards ``written`` is its address, or None and no file where a twin would save less than ``MIN_SAVING``.
    """

    def __init__(self, path: Path, workers: int | None = None) -> None:
        self._path = path
        self._workers = workers or num_workers()
        self.written: WrittenShard | None = None

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._workers, "encode")
        self._pending: deque[Future[bytes]] = deque()
        self._hasher = RootHasher()
        self._chunk = bytearray()
        self._raw_bytes = 0
        self._is_useless = False
        with naming_full_disk(self._path):
            self._file = self._path.open("xb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._pool.shutdown(cancel_futures=True)
            self._file.close()
            if self.written is None:
                self._path.unlink()

    def begin(self, header: ShardHeader) -> None:
        """What is to come: where words of which width lie."""
        self._spans = _spans(header)
        self._width, self._span_left = next(self._spans)
        self._shard_bytes = header.file_bytes
        self._write(_HEAD.pack(_MAGIC, self._shard_bytes))

    def update(self, data: Bytes) -> None:
        """The next bytes of the shard."""
        view = memoryview(data).cast("B")
        while len(view) and not self._is_useless:
            assert self._span_left, "more bytes than the header says"
            taken = view[: min(CHUNK_BYTES - len(self._chunk), self._span_left)]
            self._chunk += taken
            self._span_left -= len(taken)
            view = view[len(taken) :]
            if len(self._chunk) == CHUNK_BYTES or not self._span_left:
                self._submit()
            if not self._span_left:
                self._width, self._span_left = next(self._spans, (1, 0))

    def _submit(self) -> None:
        self._pending.append(self._pool.submit(encode_chunk, self._chunk, self._width))
        self._raw_bytes += len(self._chunk)
        self._chunk = bytearray()
        while len(self._pending) > 2 * self._workers:
            self._write(self._pending.popleft().result())
        if self._raw_bytes >= _GIVE_UP_BYTES and not self._is_worth_it(self._raw_bytes - self._in_flight()):
            self._is_useless = True

    def _in_flight(self) -> int:
        return len(self._pending) * CHUNK_BYTES  # at most

    def _is_worth_it(self, raw_bytes: int) -> bool:
        return self._hasher.size <= (1 - MIN_SAVING) * raw_bytes

    def _finish(self) -> None:
        while self._pending and not self._is_useless:
            self._write(self._pending.popleft().result())
        if not self._is_useless and self._is_worth_it(self._shard_bytes):
            assert self._raw_bytes == self._shard_bytes, "the shard ended early"
            self.written = WrittenShard(self._hasher.size, *self._hasher.root_and_layer(PIECE_LENGTH))

    def _write(self, data: bytes) -> None:
        with naming_full_disk(self._path):
            self._file.write(data)
        self._hasher.update(data)


def encode_chunk(chunk: Bytes, width: int) -> bytes:
    """One chunk as the twin holds it, its lengths in front."""
    stored = [
        _shrunk(plane.data, _FLOATS if width > 1 else _OTHERS) for plane in byteplanes.split(chunk, width)
    ]
    lengths = struct.pack(f"<{width}I", *(len(plane) for plane in stored))
    return b"".join((_CHUNK.pack(width, len(chunk)), lengths, *stored))


def decoded_chunks(
    path: Path, twin: EncodedShard, ref: ShardRef, workers: int | None = None
) -> Generator[memoryview, None, None]:
    """The bytes of the shard ``ref``, chunk by chunk, decoded on ``workers`` cores and never ahead by more than two each.

    Raises NotFound, or ShardCorrupt for anything that is not a twin of a shard of that size. Whether the bytes are the
    shard's is for ``StreamedShard`` to say.
    """
    workers = workers or num_workers()
    with open_sized(path, twin) as file, ThreadPoolExecutor(workers, "decode") as pool:
        pending: deque[Future[memoryview]] = deque()
        try:
            for width, lengths, planes in _stored_chunks(file, twin, ref):
                pending.append(pool.submit(_decode_chunk, twin.file, width, lengths, planes))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def decode(
    path: Path,
    twin: EncodedShard,
    ref: ShardRef,
    out: Path,
    on_bytes: Callable[[int], None] = lambda _: None,
    workers: int | None = None,
) -> None:
    """Write the shard to the new file ``out``, hashed on its way: it is there and right, or not there.

    Raises NotFound, ShardCorrupt, NotEnoughDisk.
    """
    with _kept_if_whole(out), naming_full_disk(out), out.open("xb", buffering=0) as file:

        def write(chunk: memoryview) -> None:
            on_bytes(len(chunk))
            while len(chunk):  # a raw write may be short
                chunk = chunk[file.write(chunk) :]

        _stream(path, twin, ref, write, workers)


def check_twin(
    path: Path, twin: EncodedShard, ref: ShardRef, on_bytes: Callable[[int], None] = lambda _: None
) -> None:
    """Decode without keeping anything: whether it is a twin of ``ref``. Raises as ``decode`` does."""
    _stream(path, twin, ref, lambda chunk: on_bytes(len(chunk)), None)


def _stream(
    path: Path, twin: EncodedShard, ref: ShardRef, sink: Callable[[memoryview], None], workers: int | None
) -> None:
    shard = StreamedShard(ref)
    with closing(
        decoded_chunks(path, twin, ref, workers)
    ) as chunks:  # an error must not keep its threads alive
        for chunk in chunks:
            shard.update(chunk)
            sink(chunk)
    shard.finish()


def _spans(header: ShardHeader) -> Iterator[tuple[int, int]]:
    """Width and length in bytes of every stretch of equal words, in the order of the file."""
    width, length = 1, header.header_bytes
    for info in header.tensors.values():
        found = PLAIN_TYPES.get(info.type, 1)  # quantised blocks are bytes to us
        if found != width:
            yield width, length
            width, length = found, 0
        length += info.nbytes
    yield width, length


def _shrunk(plane: memoryview, parameters: zstandard.ZstdCompressionParameters) -> bytes | memoryview:
    """The plane as a frame, or itself if that saves too little."""
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    frame: bytes
    for part in (plane[:_PROBE_BYTES], plane):
        frame = compressor.compress(part)
        if len(frame) > (1 - MIN_SAVING) * len(part):
            return plane
    return frame


# -- reading: nothing here is believed ---------------------------------------------------------------------------


def _stored_chunks(file: FileIO, twin: EncodedShard, ref: ShardRef) -> Iterator[tuple[int, int, list[bytes]]]:
    """Width, bytes of a plane and the stored planes of each chunk; every length was checked before it was read."""
    magic, shard_bytes = _HEAD.unpack(_read(file, _HEAD.size, twin))
    if magic != _MAGIC:
        raise _corrupt(twin, f"the format {CODEC}", f"it begins with {magic!r}")
    if shard_bytes != ref.size:
        raise _corrupt(twin, f"a twin of {ref.size} bytes", f"one of {shard_bytes}")
    left = ref.size
    while left:
        width, raw_bytes = _CHUNK.unpack(_read(file, _CHUNK.size, twin))
        if width not in byteplanes.WIDTHS:
            raise _corrupt(twin, "words of 1, 2 or 4 bytes", f"a chunk with words of {width}")
        if not 0 < raw_bytes <= min(CHUNK_BYTES, left) or raw_bytes % width:
            raise _corrupt(twin, f"chunks of whole words, {left} bytes left", f"a chunk of {raw_bytes}")
        plane_bytes = raw_bytes // width
        lengths = struct.unpack(f"<{width}I", _read(file, 4 * width, twin))
        if not all(0 < length <= plane_bytes for length in lengths):
            raise _corrupt(twin, f"planes of at most {plane_bytes} bytes", f"planes of {max(lengths)}")
        yield width, plane_bytes, [_read(file, length, twin) for length in lengths]
        left -= raw_bytes
    if file.read(1):
        raise _corrupt(twin, "its end after the last chunk", "more bytes")


def _decode_chunk(file: str, width: int, plane_bytes: int, stored: list[bytes]) -> memoryview:
    planes = [plane if len(plane) == plane_bytes else _expand(file, plane, plane_bytes) for plane in stored]
    return byteplanes.join(planes, width)


def _expand(file: str, frame: bytes, size: int) -> bytes:
    """``max_output_size`` binds nothing when a frame states its size, so that statement is what is checked."""
    try:
        promised = zstandard.get_frame_parameters(frame)
        if promised.content_size != size or promised.window_size > MAX_WINDOW_BYTES or promised.dict_id:
            raise _damaged(
                file,
                f"a frame of {size} bytes",
                f"one of {promised.content_size} with a window of {promised.window_size}",
            )
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        plane: bytes = decompressor.decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise _damaged(file, "a zstd frame", str(exc)) from exc
    if len(plane) != size:
        raise _damaged(file, f"a frame of {size} bytes", f"one of {len(plane)}")
    return plane


def _read(file: FileIO, size: int, twin: EncodedShard) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise _corrupt(twin, "whole chunks", f"its end {size - len(data)} bytes early")
    return data


def _corrupt(twin: EncodedShard, expected: str, found: str) -> ShardCorrupt:
    return _damaged(twin.file, expected, found)


def _damaged(file: str, expected: str, found: str) -> ShardCorrupt:
    return ShardCorrupt(file, expected, found, "fetch it again, or the shard as it is (--encoding raw)")


@contextmanager
def _kept_if_whole(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except BaseException:
        path.unlink(missing_ok=True)
        raise
