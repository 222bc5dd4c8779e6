"""The header of a shard: a safetensors header that is a pure function of what the shard holds.

    8 bytes      N, little-endian
    N bytes      JSON, sorted keys, no spaces, padded with spaces so that 8 + N is a multiple of 16384
    the rest     tensors end to end: by size, largest first, then by name; no holes

So the data starts on a merkle leaf, equal layers have equal bytes on every machine, and any safetensors reader opens
the file. A GGML block type is stored as ``U8`` rows; ``__metadata__`` says what they are. Neither a name, a time nor a
release is in it: the same layer has the same address in every release.

Knows bytes and JSON. Knows nothing of files, roots or what the tensors mean.

Follows https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mesh import strict_json
from mesh.weights.shards.merkle import BLOCK_BYTES
from mesh.weights.shards.tensor_types import BLOCK_TYPES, PLAIN_TYPES, num_bytes, row_bytes

FORMAT = "llama-mesh.shard/1"
ROPE_LAYOUT = "half"  # q and k rows in Hugging Face's order: first halves of the pairs, then second halves
MAX_HEADER_BYTES = 1024 * 1024
MAX_DIMENSION = 1 << 40
_METADATA = {"format", "role", "layer", "rope_layout", "license_digest", "ggml"}
_HEX32 = re.compile(r"[0-9a-f]{64}")
_TENSOR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. ``type`` and ``shape`` are the true ones, row-major in Hugging Face's order."""

    name: str
    type: str  # F32, F16, BF16, U8 or a GGML block type
    shape: tuple[int, ...]
    offset: int  # bytes, from the end of the header
    nbytes: int


@dataclass(frozen=True, slots=True)
class ShardHeader:
    role: str
    layer: int | None
    license_digest: str  # hex SHA-256 of the license text
    tensors: Mapping[str, TensorInfo]  # in the order of their bytes
    header_bytes: int  # where the data starts: 8 + N

    @property
    def file_bytes(self) -> int:
        return self.header_bytes + sum(info.nbytes for info in self.tensors.values())


def lay_out(
    role: str, layer: int | None, license_digest: str, tensors: Sequence[tuple[str, str, tuple[int, ...]]]
) -> tuple[ShardHeader, bytes]:
    """Place ``(name, type, shape)`` tensors; returns the header as a value and as bytes.

    ``parse`` of the bytes is the value, whatever order the tensors came in.
    """
    sized = sorted(((-num_bytes(type_, shape), name, type_, shape) for name, type_, shape in tensors))
    infos: dict[str, TensorInfo] = {}
    offset = 0
    for negative_size, name, type_, shape in sized:
        infos[name] = TensorInfo(name, type_, shape, offset, -negative_size)
        offset -= negative_size
    assert len(infos) == len(sized), "a tensor name came twice"

    metadata = {
        "format": FORMAT,
        "role": role,
        "layer": "" if layer is None else str(layer),
        "rope_layout": ROPE_LAYOUT,
        "license_digest": license_digest,
    }
    blocks = {
        info.name: {"ggml_type": info.type, "shape": list(info.shape), "block": list(BLOCK_TYPES[info.type])}
        for info in infos.values()
        if info.type in BLOCK_TYPES
    }
    if blocks:
        metadata["ggml"] = strict_json.dumps(blocks).decode()
    value: dict[str, Any] = {"__metadata__": metadata}
    for info in infos.values():
        dtype, shape = _stored(info.type, info.shape)
        value[info.name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [info.offset, info.offset + info.nbytes],
        }
    text = strict_json.dumps(value)
    text += b" " * (-(8 + len(text)) % BLOCK_BYTES)
    assert len(text) <= MAX_HEADER_BYTES, "a shard of so many tensors is not one of ours"
    data = len(text).to_bytes(8, "little") + text
    return ShardHeader(role, layer, license_digest, infos, len(data)), data


def header_length(first: bytes, file_bytes: int) -> int:
    """8 + N from a file's first 8 bytes, bounded before anybody reads that much. Raises ValueError."""
    if len(first) < 8:
        raise ValueError("too short for a header")
    length = 8 + int.from_bytes(first[:8], "little")
    if not 8 < length <= min(8 + MAX_HEADER_BYTES, file_bytes):
        raise ValueError(f"a header of {length - 8} bytes")
    if length % BLOCK_BYTES:
        raise ValueError(f"data that starts at {length}, not on a {BLOCK_BYTES}-byte boundary")
    return length


def parse(header: bytes, file_bytes: int) -> ShardHeader:
    """Read the ``header_length`` first bytes of a file of ``file_bytes``. Raises ValueError; never anything else."""
    raw, metadata = parse_safetensors(header[8:], file_bytes - len(header), max_bytes=MAX_HEADER_BYTES)
    if unknown := sorted(metadata.keys() - _METADATA):
        raise ValueError(f"unknown metadata {unknown[0][:40]!r}")
    if (found := metadata.get("format")) != FORMAT:
        raise ValueError(f"shard format {str(found)[:40]!r}, this version reads {FORMAT!r}")
    if (found := metadata.get("rope_layout")) != ROPE_LAYOUT:
        raise ValueError(f"RoPE layout {str(found)[:40]!r}, this version reads {ROPE_LAYOUT!r}")
    if not _HEX32.fullmatch(metadata.get("license_digest", "")):
        raise ValueError("no license digest")
    layer_text = metadata.get("layer", "?")
    if layer_text != "" and not re.fullmatch(r"0|[1-9]\d{0,4}", layer_text, re.ASCII):
        raise ValueError(f"layer {layer_text[:40]!r}")
    blocks = _blocks(metadata.get("ggml", "{}"))
    if stray := sorted(blocks.keys() - raw.keys()):
        raise ValueError(f"block type of a tensor that is not there, {stray[0][:40]!r}")
    tensors = {}
    for name, entry in raw.items():
        type_, shape = blocks.get(name, (entry.type, entry.shape))
        if (entry.type, entry.shape) != _stored(type_, shape):
            raise ValueError(
                f"tensor {name[:80]!r} is stored as {entry.type} {entry.shape}, unlike its declared {type_}"
            )
        tensors[name] = TensorInfo(name, type_, shape, entry.offset, entry.nbytes)
    return ShardHeader(
        role=metadata.get("role", ""),
        layer=int(layer_text) if layer_text else None,
        license_digest=metadata["license_digest"],
        tensors=tensors,
        header_bytes=len(header),
    )


def parse_safetensors(
    header: bytes, data_bytes: int, *, max_bytes: int
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Any safetensors header (without its 8 length bytes): tensors in the order of their bytes, and metadata.

    Raises ValueError on a type we do not know, on holes, overlaps and on sizes that do not add up.
    """
    if not header.startswith(b"{"):
        raise ValueError("a header that is not a JSON object")
    top = strict_json.loads(header.rstrip(b" "), max_bytes=max_bytes)
    metadata = top.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("metadata that is not texts")
    infos = sorted(
        (_tensor(name, entry) for name, entry in top.items()),
        key=lambda info: (info.offset, info.nbytes, info.name),
    )
    end = 0
    for info in infos:
        if info.offset != end:
            raise ValueError(f"a hole or an overlap before tensor {info.name[:80]!r}")
        end += info.nbytes
    if end != data_bytes:
        raise ValueError(f"tensors of {end} bytes in {data_bytes} bytes of data")
    return {info.name: info for info in infos}, metadata


def _tensor(name: str, entry: object) -> TensorInfo:
    if not _TENSOR_NAME.fullmatch(name):
        raise ValueError(f"tensor name {name[:80]!r}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r}: expected dtype, shape and data_offsets")
    dtype, offsets = entry["dtype"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in PLAIN_TYPES:
        raise ValueError(f"tensor {name!r}: type {str(dtype)[:40]!r}; supported: {', '.join(PLAIN_TYPES)}")
    shape = _shape(name, entry["shape"])
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(at) is not int for at in offsets):
        raise ValueError(f"tensor {name!r}: data_offsets")
    nbytes = num_bytes(dtype, shape)
    if offsets[0] < 0 or offsets[1] - offsets[0] != nbytes:
        raise ValueError(
            f"tensor {name!r}: {offsets[1] - offsets[0]} bytes for {dtype} of shape {list(shape)}"
        )
    return TensorInfo(name, dtype, shape, offsets[0], nbytes)


def _shape(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 8:
        raise ValueError(f"tensor {name[:80]!r}: expected a shape of 1 to 8 dimensions")
    if any(type(size) is not int or not 1 <= size <= MAX_DIMENSION for size in value):
        raise ValueError(f"tensor {name[:80]!r}: a dimension out of bounds")
    return tuple(value)


def _blocks(text: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    value = strict_json.loads(text.encode(), max_bytes=MAX_HEADER_BYTES)
    if not isinstance(value, dict):
        raise ValueError("block types that are not an object")
    found = {}
    for name, entry in value.items():
        if not isinstance(entry, dict) or entry.keys() != {"ggml_type", "shape", "block"}:
            raise ValueError(f"tensor {name[:80]!r}: expected ggml_type, shape and block")
        type_ = entry["ggml_type"]
        if not isinstance(type_, str) or type_ not in BLOCK_TYPES:
            raise ValueError(f"tensor {name[:80]!r}: block type {str(type_)[:40]!r}")
        if entry["block"] != list(BLOCK_TYPES[type_]):
            raise ValueError(f"tensor {name[:80]!r}: {type_} blocks of {str(entry['block'])[:40]}")
        found[name] = type_, _shape(name, entry["shape"])
    return found


def _stored(type_: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """The dtype and shape that safetensors is told: block types are rows of bytes."""
    if type_ in PLAIN_TYPES:
        return type_, shape
    return "U8", (*shape[:-1], row_bytes(type_, shape[-1]))
