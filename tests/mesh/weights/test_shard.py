"""Shards: equal content gives equal bytes; bytes that differ are refused before anything in them is believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from mesh.errors import NotFound, ShardCorrupt
from mesh.weights.shards import tensor_file
from mesh.weights.shards.merkle import BLOCK_BYTES, RootHasher
from mesh.weights.shards.shard import TensorSource, check_shard, read_shard, write_shard
from mesh.weights.shards.tensor_types import BLOCK_TYPES, PLAIN_TYPES, num_bytes
from mesh.weights.trust.manifest import ShardRef

LICENSE = hashlib.sha256(b"license").hexdigest()


def source(name: str, type_: str, shape: tuple[int, ...], seed: int = 0) -> TensorSource:
    data = np.random.default_rng(seed).bytes(num_bytes(type_, shape))
    return TensorSource(name, type_, shape, lambda: iter((data[:7], memoryview(data)[7:])))


SOURCES = (
    source("input_layernorm.weight", "F32", (64,), 1),
    source("self_attn.q_proj.weight", "Q4_1", (64, 64), 2),
    source("mlp.up_proj.weight", "Q6_K", (3, 512), 3),
    source("mlp.down_proj.weight", "BF16", (64, 96), 4),
)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, ShardRef]:
    path = tmp_path / "layer-00003.safetensors"
    shard = write_shard(path, "layer", 3, SOURCES, LICENSE)
    return path, ShardRef("layer", 3, path.name, shard.size, shard.root.hex())


def ref_of(path: Path, role: str = "layer", layer: int | None = 3) -> ShardRef:
    """The address of whatever a file holds: what a publisher who signs nonsense would sign."""
    hasher = RootHasher()
    hasher.update(path.read_bytes())
    return ShardRef(role, layer, path.name, hasher.size, hasher.root().hex())


def test_what_was_written_is_what_is_read(written: tuple[Path, ShardRef]) -> None:
    shard = read_shard(*written)
    assert (shard.role, shard.layer, shard.license_digest) == ("layer", 3, LICENSE)
    assert set(shard.tensors) == {one.name for one in SOURCES}
    for one in SOURCES:
        info = shard.tensors[one.name]
        assert (info.type, info.shape) == (one.type, one.shape)
        assert bytes(shard.bytes_of(one.name)) == b"".join(bytes(chunk) for chunk in one.chunks())


def test_tensors_lie_by_size_then_name_on_a_leaf_border(written: tuple[Path, ShardRef]) -> None:
    header = check_shard(*written)
    assert header.header_bytes % BLOCK_BYTES == 0
    assert header.file_bytes == written[1].size
    sizes = [(-info.nbytes, info.name) for info in header.tensors.values()]
    assert sizes == sorted(sizes)


def test_order_of_the_sources_does_not_change_a_byte(tmp_path: Path, written: tuple[Path, ShardRef]) -> None:
    write_shard(tmp_path / "again", "layer", 3, reversed(SOURCES), LICENSE)
    assert (tmp_path / "again").read_bytes() == written[0].read_bytes()


def test_the_header_names_no_release_and_no_time(written: tuple[Path, ShardRef]) -> None:
    with safe_open(written[0], "numpy") as file:
        assert set(file.metadata()) == {"format", "role", "layer", "rope_layout", "license_digest", "ggml"}


def test_the_safetensors_library_opens_it_and_sees_the_same_bytes(written: tuple[Path, ShardRef]) -> None:
    shard = read_shard(*written)
    plain = {name for name, info in shard.tensors.items() if info.type != "BF16"}  # numpy has no bfloat16
    with safe_open(written[0], "numpy") as file:
        assert set(file.keys()) == set(shard.tensors)
        for name in plain:
            assert file.get_tensor(name).tobytes() == bytes(shard.bytes_of(name))
        assert json.loads(file.metadata()["ggml"])["mlp.up_proj.weight"] == {
            "ggml_type": "Q6_K",
            "shape": [3, 512],
            "block": [256, 210],
        }


def test_an_existing_file_is_not_overwritten(written: tuple[Path, ShardRef]) -> None:
    with pytest.raises(FileExistsError):
        write_shard(written[0], "layer", 3, (), LICENSE)


Readers = st.sampled_from([read_shard, check_shard])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_flipped_bit_is_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("flip") / "layer-00003.safetensors"
    shard = write_shard(path, "layer", 3, SOURCES, LICENSE)
    ref = ShardRef("layer", 3, path.name, shard.size, shard.root.hex())
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(ShardCorrupt, match=r"layer-00003\.safetensors.*root") as caught:
        data.draw(Readers)(path, ref)
    assert caught.value.expected == f"root {ref.root}"


@pytest.mark.parametrize("read", [read_shard, check_shard])
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"", lambda data: data + b"\0"])
def test_another_size_is_refused_unread(
    written: tuple[Path, ShardRef], read: Callable[..., Any], change: Callable[[bytes], bytes]
) -> None:
    path, ref = written
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ShardCorrupt, match=f"expected {ref.size} bytes"):
        read(path, ref)


@pytest.mark.parametrize("read", [read_shard, check_shard])
def test_a_missing_shard_is_not_found(tmp_path: Path, read: Callable[..., Any]) -> None:
    with pytest.raises(NotFound, match="fetch it first"):
        read(tmp_path / "nowhere", ShardRef("head", None, "head.safetensors", 1, "0" * 64))
    with pytest.raises(NotFound):  # and a directory is not a shard
        read(tmp_path, ShardRef("head", None, "head.safetensors", 1, "0" * 64))


@pytest.mark.parametrize(("role", "layer"), [("layer", 2), ("layer", 4), ("embed", None), ("head", None)])
def test_a_shard_in_the_place_of_another_is_refused(
    written: tuple[Path, ShardRef], role: str, layer: int | None
) -> None:
    with pytest.raises(ShardCorrupt, match="role layer 3"):
        read_shard(written[0], ref_of(written[0], role, layer))


def header_json(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    value: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return value


def with_header(path: Path, value: object) -> None:
    data = path.read_bytes()
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    text += b" " * (-(8 + len(text)) % BLOCK_BYTES)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :])


def set_in(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(top: dict[str, Any]) -> None:
        for key in path[:-1]:
            top = top[key]
        top[path[-1]] = value

    return change


def in_ggml(name: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(top: dict[str, Any]) -> None:
        blocks = json.loads(top["__metadata__"]["ggml"])
        blocks.setdefault(name, {}).update(fields)
        top["__metadata__"]["ggml"] = json.dumps(blocks)

    return change


DOWN, NORM, Q = "mlp.down_proj.weight", "input_layernorm.weight", "self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_in("__metadata__", "format", value="other/9"), "other/9"),
        (set_in("__metadata__", "rope_layout", value="interleaved"), "interleaved"),
        (set_in("__metadata__", "release", value="x"), "unknown metadata 'release'"),
        (set_in("__metadata__", "license_digest", value="x"), "license digest"),
        (set_in("__metadata__", "layer", value="03"), "layer"),
        (set_in("__metadata__", "layer", value=3), "not texts"),
        (set_in("__metadata__", "ggml", value="[]"), "not an object"),
        (set_in("__metadata__", "ggml", value="{}{"), "Extra data"),
        (set_in(DOWN, "dtype", value="F64"), "F64"),
        (set_in(DOWN, "dtype", value=["F32"]), "F32"),
        (set_in(DOWN, "shape", value=[64, 97]), "bytes for BF16"),
        (set_in(DOWN, "shape", value=[0]), "out of bounds"),
        (set_in(DOWN, "shape", value=[2**63, 2**63]), "out of bounds"),
        (set_in(DOWN, "shape", value=[]), "dimensions"),
        (set_in(DOWN, "shape", value=[True, 64 * 96]), "out of bounds"),
        (set_in(DOWN, "data_offsets", value=[0]), "data_offsets"),
        (set_in(DOWN, "data_offsets", value=[1, 12289]), "hole or an overlap"),
        (set_in(DOWN, "data_offsets", value=[-12288, 0]), "bytes for"),
        (set_in(DOWN, "extra", value=1), "expected dtype"),
        (set_in(NORM, value=[]), "expected dtype"),
        (set_in("../../etc/passwd", value={"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}), "tensor name"),
        (in_ggml(Q, ggml_type="Q9_9"), "Q9_9"),
        (in_ggml(Q, ggml_type="Q8_0", block=[32, 34]), "unlike its declared Q8_0"),
        (in_ggml(Q, shape=[64, 65]), "not whole Q4_1 blocks"),
        (in_ggml(Q, block=[32, 21]), "Q4_1 blocks of"),
        (in_ggml("nothing", ggml_type="Q8_0", block=[32, 34], shape=[32]), "not there"),
        (in_ggml(Q, more=1), "expected ggml_type"),
        (lambda top: top.pop(NORM), "bytes of data"),
    ],
)  # fmt: skip
def test_a_signed_header_that_breaks_a_rule_is_refused(
    written: tuple[Path, ShardRef], change: Callable[[dict[str, Any]], None], says: str
) -> None:
    path, _ = written
    value = header_json(path)
    change(value)
    with_header(path, value)
    with pytest.raises(ShardCorrupt, match=says):
        read_shard(path, ref_of(path))


def test_a_duplicate_tensor_name_is_refused(written: tuple[Path, ShardRef]) -> None:
    path, _ = written
    text = json.dumps(header_json(path)).encode()
    entry = json.dumps(header_json(path)[NORM]).encode()
    with_header(path, b'{"%b":%b,%b' % (NORM.encode(), entry, text[1:]))
    with pytest.raises(ShardCorrupt, match="duplicate key"):
        read_shard(path, ref_of(path))


@pytest.mark.parametrize("length", [0, 1, 2**20 + 1, 2**40, 2**64 - 1])
def test_an_impossible_header_length_is_refused_before_it_is_read(
    written: tuple[Path, ShardRef], length: int
) -> None:
    path, _ = written
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ShardCorrupt, match="header"):
        read_shard(path, ref_of(path))


def test_a_file_too_short_for_a_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1234")
    with pytest.raises(ShardCorrupt, match="too short"):
        read_shard(tmp_path / "x", ref_of(tmp_path / "x"))


TENSORS = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_.]{0,20}", fullmatch=True),
    st.one_of(
        st.tuples(st.sampled_from(sorted(PLAIN_TYPES)), st.lists(st.integers(1, 9), min_size=1, max_size=4)),
        st.tuples(st.sampled_from(sorted(BLOCK_TYPES)), st.tuples(st.integers(1, 5), st.just(512))),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(TENSORS, st.one_of(st.none(), st.integers(0, 1023)), st.randoms())
def test_parse_of_a_layout_is_the_layout(tensors: dict[str, Any], layer: int | None, random: Any) -> None:
    wanted = [(name, type_, tuple(shape)) for name, (type_, shape) in tensors.items()]
    header, data = tensor_file.lay_out("layer", layer, LICENSE, wanted)
    random.shuffle(wanted)

    assert tensor_file.lay_out("layer", layer, LICENSE, wanted) == (header, data)
    assert tensor_file.header_length(data[:8], header.file_bytes) == len(data)
    assert tensor_file.parse(data, header.file_bytes) == header


HEADER, HEADER_DATA = tensor_file.lay_out("layer", 3, LICENSE, [(s.name, s.type, s.shape) for s in SOURCES])


@settings(max_examples=300, deadline=None)
@given(st.integers(8, len(HEADER_DATA.rstrip())), st.binary(min_size=1, max_size=6))
def test_any_damage_to_a_header_is_a_value_error(at: int, junk: bytes) -> None:
    damaged = HEADER_DATA[:at] + junk + HEADER_DATA[at + len(junk) :]
    try:
        parsed = tensor_file.parse(damaged, HEADER.file_bytes)
    except ValueError:
        return
    assert sum(info.nbytes for info in parsed.tensors.values()) == HEADER.file_bytes - HEADER.header_bytes
