"""Encoded twins: what comes out is the shard, or nothing does, and nobody's lengths decide how much memory that takes."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import NotFound, ShardCorrupt
from mesh.weights.shards import byteplanes
from mesh.weights.shards.encoding import (
    CHUNK_BYTES,
    TwinWriter,
    check_twin,
    decode,
    encode_chunk,
    twin_file,
)
from mesh.weights.shards.merkle import RootHasher
from mesh.weights.shards.shard import TensorSource, write_shard
from mesh.weights.shards.tensor_types import num_bytes
from mesh.weights.trust.manifest import EncodedShard, ShardRef
from tests.golden.make_golden import DIRECTORY

LICENSE = hashlib.sha256(b"license").hexdigest()
HEAD = b"meshbpz\x01"
# of the head shard that was encoded into it with zstd 1.5.7
GOLDEN_SIZE = 22784
GOLDEN_ROOT = "68429989a52ddf00fb8bbd79681dcc5971b06a87f386c5e1045925549aa1231f"


def weights(type_: str, shape: tuple[int, ...], seed: int = 0) -> bytes:
    """Bytes like those of a trained tensor of this type; random ones for blocks."""
    rng = np.random.default_rng(seed)
    if type_ not in ("F32", "F16", "BF16"):
        return rng.bytes(num_bytes(type_, shape))
    floats = rng.normal(0, 0.02, shape).astype(np.float32)
    if type_ == "BF16":
        return (floats.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return floats.astype(np.float16 if type_ == "F16" else np.float32).tobytes()


def source(name: str, type_: str, shape: tuple[int, ...], step: int = 100_003) -> TensorSource:
    data = weights(type_, shape)
    return TensorSource(
        name, type_, shape, lambda: iter([data[at : at + step] for at in range(0, len(data), step)])
    )


class Encoded:
    """A shard, its twin, and what a manifest says of both."""

    def __init__(self, directory: Path, *sources: TensorSource) -> None:
        self.shard_path, self.path = directory / "head.safetensors", directory / "head.bpz"
        with TwinWriter(self.path, workers=2) as writer:
            shard = write_shard(self.shard_path, "head", None, sources, LICENSE, follower=writer)
        assert writer.written is not None, "not worth it"
        self.ref = ShardRef("head", None, self.shard_path.name, shard.size, shard.root.hex())
        self.twin = EncodedShard(
            self.ref.file, self.path.name, writer.written.size, writer.written.root.hex()
        )

    def replaced(self, data: bytes) -> EncodedShard:
        """Other bytes for the twin, signed by a publisher who means harm."""
        self.path.write_bytes(data)
        return EncodedShard(self.ref.file, self.path.name, len(data), self.twin.root)


@pytest.fixture
def encoded(tmp_path: Path) -> Encoded:
    return Encoded(
        tmp_path, source("a", "BF16", (64, 512)), source("b", "F32", (64, 8)), source("c", "U8", (77,))
    )


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_planes_join_to_what_was_split(data: st.DataObject) -> None:
    width = data.draw(st.sampled_from(byteplanes.WIDTHS))
    words = data.draw(st.integers(0, 200)) * data.draw(st.sampled_from((1, 700)))  # also more than a block
    raw = np.random.default_rng(words).bytes(words * width)
    assert bytes(byteplanes.join([plane.data for plane in byteplanes.split(raw, width)], width)) == raw


def test_top_plane_of_bf16_and_fp32_is_the_exponent() -> None:
    floats = np.array([1.0, -1.0, 1.99, -0.5, 3e38], np.float32)
    exponents = [127, 127, 127, 126, 254]
    assert byteplanes.split(floats.tobytes(), 4)[3].tolist() == exponents
    halves = (floats.view(np.uint32) >> 16).astype(np.uint16)
    assert byteplanes.split(halves.tobytes(), 2)[1].tolist() == exponents


_TYPES = st.sampled_from([("BF16", 1), ("F16", 1), ("F32", 1), ("U8", 1), ("Q4_1", 32), ("Q8_0", 32)])


@given(
    st.lists(st.tuples(_TYPES, st.integers(1, 5), st.integers(1, 999)), min_size=1, max_size=6),
    st.integers(1, 9999),
)
@settings(max_examples=40, deadline=None)
def test_any_mix_of_types_and_odd_sizes_round_trips(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[tuple[tuple[str, int], int, int]], step: int
) -> None:
    directory = tmp_path_factory.mktemp("mix")
    encoded = Encoded(  # the header of spaces alone makes a twin worth it; 200 kB of noise would not
        directory,
        *(
            source(f"t{i}", type_, (rows, columns * block), step)
            for i, ((type_, block), rows, columns) in enumerate(tensors)
        ),
        TensorSource.of_bytes("text", b"all work and no play " * 3000),
    )
    decode(encoded.path, encoded.twin, encoded.ref, directory / "out")
    assert (directory / "out").read_bytes() == encoded.shard_path.read_bytes()


def test_shard_of_many_chunks_round_trips_and_bf16_takes_its_entropy(tmp_path: Path) -> None:
    rows = 3 * CHUNK_BYTES // 2048 + 7  # two bytes each: a last chunk that is not full
    encoded = Encoded(tmp_path, source("w", "BF16", (rows, 1024)), source("bias", "F32", (333,)))
    done: list[int] = []
    decode(encoded.path, encoded.twin, encoded.ref, tmp_path / "out", done.append, workers=2)
    assert (tmp_path / "out").read_bytes() == encoded.shard_path.read_bytes()
    assert sum(done) == encoded.ref.size
    assert encoded.twin.size < 0.69 * encoded.ref.size
    assert max(done) == CHUNK_BYTES


def test_twin_does_not_depend_on_how_the_bytes_came_or_on_the_cores(tmp_path: Path) -> None:
    found = set()
    for workers, step in ((1, 7919), (3, 1 << 20)):
        directory = tmp_path / str(workers)
        directory.mkdir()
        with TwinWriter(directory / "twin", workers) as writer:
            write_shard(
                directory / "shard",
                "head",
                None,
                [source("w", "F32", (700, 2000), step)],
                LICENSE,
                follower=writer,
            )
        found.add((directory / "twin").read_bytes())
    assert len(found) == 1


def test_shard_that_would_save_nothing_gets_no_twin(tmp_path: Path) -> None:
    with TwinWriter(tmp_path / "twin") as writer:
        write_shard(
            tmp_path / "shard", "head", None, [source("q", "Q4_1", (4096, 512))], LICENSE, follower=writer
        )
    assert writer.written is None
    assert not (tmp_path / "twin").exists()


def test_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> TensorSource:
        data = weights("BF16", (64, 512))

        def chunks():  # type: ignore[no-untyped-def]
            yield data[:1000]
            raise KeyboardInterrupt

        return TensorSource("w", "BF16", (64, 512), chunks)

    with pytest.raises(KeyboardInterrupt), TwinWriter(tmp_path / "twin") as writer:
        write_shard(tmp_path / "shard", "head", None, [broken()], LICENSE, follower=writer)
    assert not (tmp_path / "twin").exists()


# -- what was always written -------------------------------------------------------------------------------------


def test_container_is_frozen_where_nothing_is_compressed() -> None:
    """zstd may spell a plane otherwise tomorrow; a plane stored whole, and every length, may not change."""
    words = bytes.fromhex("807f 0102 ff00 3412".replace(" ", ""))
    assert encode_chunk(words, 1).hex() == "010800000008000000807f0102ff003412"
    assert encode_chunk(words, 2).hex() == "020800000004000000040000000002fe68ff040124"
    assert encode_chunk(words, 4).hex() == (
        "04" "08000000" "02000000" "02000000" "02000000" "02000000" "00fe" "ff01" "0268" "0424"
    )  # fmt: skip


def test_twin_that_was_always_written_is_decoded_today(tmp_path: Path) -> None:
    path = DIRECTORY / "encoded-head-v1.bpz"
    ref = ShardRef("head", None, "head.safetensors", GOLDEN_SIZE, GOLDEN_ROOT)
    check_twin(path, EncodedShard(ref.file, path.name, path.stat().st_size, "0" * 64), ref)


# -- what comes from strangers -----------------------------------------------------------------------------------


def refused(encoded: Encoded, twin: EncodedShard, out: Path, max_peak: int = CHUNK_BYTES) -> str:
    """Decoding raises ShardCorrupt, leaves no file and takes little memory. Returns what was said."""
    tracemalloc.start()
    try:
        with pytest.raises(ShardCorrupt) as caught:
            decode(encoded.path, twin, encoded.ref, out, workers=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < max_peak
    assert not out.exists()
    return str(caught.value)


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_damage_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, where: float, flip: int
) -> None:
    encoded = Encoded(
        tmp_path_factory.mktemp("damage"), source("a", "BF16", (64, 256)), source("b", "F32", (9, 8))
    )
    data = bytearray(encoded.path.read_bytes())
    data[int(where * len(data))] ^= flip
    out = encoded.path.with_name("out")
    twin = encoded.replaced(bytes(data))
    try:
        decode(encoded.path, twin, encoded.ref, out)
    except ShardCorrupt:
        assert not out.exists()
    else:  # a bit that zstd does not look at
        assert out.read_bytes() == encoded.shard_path.read_bytes()


@given(st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, where: float) -> None:
    encoded = Encoded(
        tmp_path_factory.mktemp("cut"), source("a", "BF16", (64, 256)), source("b", "F32", (9, 8))
    )
    data = encoded.path.read_bytes()
    refused(encoded, encoded.replaced(data[: int(where * len(data))]), encoded.path.with_name("out"))


def test_file_of_another_size_or_none_at_all_is_refused_unread(encoded: Encoded, tmp_path: Path) -> None:
    with encoded.path.open("ab") as file:
        file.write(b"x")
    assert f"{encoded.twin.size} bytes" in refused(encoded, encoded.twin, tmp_path / "out")
    encoded.path.unlink()
    with pytest.raises(NotFound):
        decode(encoded.path, encoded.twin, encoded.ref, tmp_path / "out")


def test_what_is_there_already_is_not_overwritten(encoded: Encoded, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        decode(encoded.path, encoded.twin, encoded.ref, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"precious"


def test_twin_of_another_shard_is_refused_by_the_shards_root(encoded: Encoded, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Encoded(
        tmp_path / "other",
        source("a", "BF16", (64, 512)),
        source("b", "F32", (64, 8)),
        source("d", "U8", (77,)),
    )
    assert other.ref.size == encoded.ref.size
    said = refused(encoded, encoded.replaced(other.path.read_bytes()), tmp_path / "out")
    assert f"root {encoded.ref.root}" in said


def container(ref: ShardRef, *chunks: bytes) -> bytes:
    return HEAD + struct.pack("<Q", ref.size) + b"".join(chunks)


def chunk(raw_bytes: int, *planes: bytes) -> bytes:
    lengths = struct.pack(f"<{len(planes)}I", *map(len, planes))
    return struct.pack("<BI", len(planes), raw_bytes) + lengths + b"".join(planes)


def frame_of(data: bytes, **options: int) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(data)  # type: ignore[arg-type]


def without_size(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_content_size=False).compress(data)


def huge_window(size: int) -> bytes:
    """The right size and a window of 2 GiB, which a decoder that streams would set aside (RFC 8878, 3.1.1.1.2)."""
    return b"\x28\xb5\x2f\xfd" + b"\x80" + bytes([21 << 3]) + struct.pack("<I", size) + b"\x01\x00\x00"


def of_zeros(size: int) -> bytes:
    """A frame of this many zeros, made without them: RLE blocks of 128 KiB (RFC 8878, 3.1.1.2)."""
    blocks = [((0x20000 << 3) | (1 << 1)).to_bytes(3, "little") + b"\0"] * (size // 0x20000)
    blocks[-1] = (int.from_bytes(blocks[-1][:3], "little") | 1).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd" + b"\xe0" + struct.pack("<Q", size) + b"".join(blocks)


GIB = 1 << 30
SIZE = 16384 + 65536
ATTACKS: dict[str, tuple[Callable[[ShardRef], bytes], str]] = {
    "a frame that says it is a gigabyte": (
        lambda ref: container(ref, chunk(SIZE, of_zeros(GIB))),
        f"one of {GIB} with a window of",
    ),
    "a frame that says it is small and is not": (
        lambda ref: container(
            ref, chunk(SIZE, of_zeros(GIB).replace(struct.pack("<Q", GIB), struct.pack("<Q", SIZE)))
        ),
        "zstd",
    ),
    "a frame that does not say how large it is": (
        lambda ref: container(ref, chunk(SIZE, without_size(bytes(SIZE)))),
        "a frame of",
    ),
    "a frame with a huge window": (
        lambda ref: container(ref, chunk(SIZE, huge_window(SIZE))),
        f"one of {SIZE} with a window of {1 << 31}",
    ),
    "a second frame behind the first": (
        lambda ref: container(ref, chunk(SIZE, frame_of(bytes(SIZE)) + of_zeros(GIB))),
        "zstd",
    ),
    "a frame that is too short": (
        lambda ref: container(ref, chunk(SIZE, frame_of(bytes(SIZE - 1)))),
        "a frame of",
    ),
    "a frame to be skipped": (
        lambda ref: container(ref, chunk(SIZE, b"\x50\x2a\x4d\x18" + struct.pack("<I", SIZE) + bytes(100))),
        "frame",
    ),
    "a plane that is no frame": (lambda ref: container(ref, chunk(SIZE, b"nonsense")), "zstd"),
    "an empty plane": (lambda ref: container(ref, chunk(SIZE, b"")), "planes of"),
    "a plane longer than its chunk": (lambda ref: container(ref, chunk(4, bytes(5))), "planes of"),
    "a chunk larger than chunks are": (
        lambda ref: container(ref, chunk(CHUNK_BYTES + 1, bytes(10))),
        f"a chunk of {CHUNK_BYTES + 1}",
    ),
    "a chunk that goes beyond the shard": (
        lambda ref: container(ref, chunk(SIZE + 1, bytes(10))),
        "a chunk of",
    ),
    "a chunk of nothing": (lambda ref: container(ref, *[chunk(0, b"")] * 1000), "a chunk of 0"),
    "half a word": (lambda ref: container(ref, chunk(5, bytes(2), bytes(2))), "whole words"),
    "words of three bytes": (lambda ref: container(ref, chunk(6, *[bytes(2)] * 3)), "words of 3"),
    "bytes behind the end": (lambda ref: container(ref, chunk(SIZE, bytes(SIZE))) + b"x", "more bytes"),
    "a shard of another size": (
        lambda ref: HEAD + struct.pack("<Q", 1 << 60) + chunk(SIZE, bytes(SIZE)),
        "one of 1152921504606846976",
    ),
    "another version": (lambda ref: b"meshbpz\x02" + bytes(8), "the format byteplane-zstd/1"),
    "too short for a head": (lambda ref: b"meshbpz", "its end"),
    "the wrong bytes": (lambda ref: container(ref, chunk(SIZE, bytes(SIZE))), "root"),
}


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_hostile_twin_is_refused_in_little_memory(tmp_path: Path, attack: str) -> None:
    encoded = Encoded(tmp_path, source("a", "F32", (128, 128)))
    assert encoded.ref.size == SIZE
    make, expected = ATTACKS[attack]
    data = make(encoded.ref)
    said = refused(encoded, encoded.replaced(data), tmp_path / "out", max_peak=2 * CHUNK_BYTES)
    assert expected in said
    assert "\n" not in said
    assert "--encoding raw" in said or "root" in said


def test_no_more_than_a_few_chunks_are_held_whatever_the_shard(tmp_path: Path) -> None:
    encoded = Encoded(tmp_path, source("w", "BF16", (32 * 1024, 1024)))  # 64 MiB
    tracemalloc.start()
    try:
        check_twin(encoded.path, encoded.twin, encoded.ref)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * 1024 * 1024  # a chunk and its planes, for each of 2 × 2 + 1 that may be under way


def test_twin_is_named_after_its_shard() -> None:
    assert twin_file("layer-00003.safetensors") == "layer-00003.bpz"


def root_of(data: bytes) -> str:
    hasher = RootHasher()
    hasher.update(data)
    return hasher.root().hex()


def test_address_of_a_twin_is_the_root_of_its_bytes(encoded: Encoded) -> None:
    data = encoded.path.read_bytes()
    assert (encoded.twin.size, encoded.twin.root) == (len(data), root_of(data))
