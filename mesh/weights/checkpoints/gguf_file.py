"""What a GGUF file says of itself: its metadata and where its tensors lie.

Reads the head of the file only, and bounds every count before believing it. Knows nothing of models: keys and tensor
names are just names. Kept small instead of using the ``gguf`` package's reader, which maps the whole file and takes
seconds and hundreds of megabytes for the vocabulary of a current model (tests hold the two equal).

Follows https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mesh.errors import CheckpointUnsupported
from mesh.weights.shards.tensor_types import num_bytes

MAX_ENTRIES = 1 << 16  # metadata entries, and tensors
MAX_ARRAY = 1 << 23  # elements; the largest vocabularies have 2^18 tokens
MAX_STRING_BYTES = 1 << 24

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# ggml.h, enum ggml_type
TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufTensor:
    path: Path
    name: str
    type: str
    shape: tuple[int, ...]  # row-major: GGUF's own order reversed
    offset: int  # bytes, from the start of the file


@dataclass(frozen=True, slots=True)
class GgufFile:
    path: Path
    metadata: Mapping[str, Any]  # numbers, texts, booleans, and lists of them
    tensors: Mapping[str, GgufTensor]
    parts: tuple[Path, ...]  # the files the tensors lie in


def read_gguf(path: Path) -> GgufFile:
    """Raises CheckpointUnsupported on anything that is not a whole, well-formed GGUF."""
    with path.open("rb") as file:
        reader = _Reader(path, file)
        if reader.take(4) != b"GGUF":
            raise reader.refuse("it does not start with GGUF")
        (version,) = reader.unpack("I")
        if version not in (2, 3):
            hint = " (big-endian?)" if version in (2 << 24, 3 << 24) else ""
            raise reader.refuse(f"GGUF version {version}{hint}; versions 2 and 3 are read")
        num_tensors, num_entries = reader.unpack("QQ")
        if max(num_tensors, num_entries) > MAX_ENTRIES:
            raise reader.refuse(f"{num_tensors} tensors and {num_entries} metadata entries")

        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = reader.text()
            if key in metadata:
                raise reader.refuse(f"metadata {key[:80]!r} comes twice")
            metadata[key] = reader.value(reader.unpack("I")[0])
        infos = [_tensor_info(reader) for _ in range(num_tensors)]

        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20:
            raise reader.refuse(f"alignment {alignment!r}")
        start = -(-file.tell() // alignment) * alignment
    tensors = {name: GgufTensor(path, name, type_, shape, start + at) for name, type_, shape, at in infos}
    if len(tensors) != len(infos):
        raise reader.refuse("a tensor name comes twice")
    for tensor in tensors.values():
        _check_extent(reader, tensor)
    return GgufFile(path, metadata, tensors, (path,))


def _tensor_info(reader: _Reader) -> tuple[str, str, tuple[int, ...], int]:
    name = reader.text()
    (num_dims,) = reader.unpack("I")
    if not 1 <= num_dims <= 4:
        raise reader.refuse(f"tensor {name[:80]!r} has {num_dims} dimensions")
    shape = reader.unpack("Q" * num_dims)[::-1]
    type_id, offset = reader.unpack("IQ")
    return name, TYPE_NAMES.get(type_id, f"type {type_id}"), shape, offset


def _check_extent(reader: _Reader, tensor: GgufTensor) -> None:
    """A type we know the size of must lie inside the file; others are refused by whoever meets them."""
    try:
        nbytes = num_bytes(tensor.type, tensor.shape)
    except ValueError:
        return
    if tensor.offset + nbytes > reader.size:
        raise reader.refuse(
            f"tensor {tensor.name[:80]!r} ends at byte {tensor.offset + nbytes} of {reader.size}; the file is cut short"
        )


class _Reader:
    """The head of a file, taken from front to back."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self.size = path.stat().st_size

    def refuse(self, what: str) -> CheckpointUnsupported:
        return CheckpointUnsupported(f"{self._path}: not a GGUF file we can read: {what}")

    def take(self, count: int) -> bytes:
        data = self._file.read(count) if count <= self.size else b""
        if len(data) != count:
            raise self.refuse(f"it ends at byte {self.size}, inside its metadata")
        return data

    def unpack(self, codes: str) -> tuple[Any, ...]:
        packed = struct.Struct("<" + codes)
        return packed.unpack(self.take(packed.size))

    def text(self) -> str:
        (length,) = self.unpack("Q")
        if length > MAX_STRING_BYTES:
            raise self.refuse(f"a text of {length} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as exc:
            raise self.refuse("a text that is not UTF-8") from exc

    def value(self, type_id: int) -> Any:
        if type_id in _SCALARS:
            return self.unpack(_SCALARS[type_id])[0]
        if type_id == _STRING:
            return self.text()
        if type_id != _ARRAY:
            raise self.refuse(f"metadata of type {type_id}")
        element, count = self.unpack("IQ")
        if count > MAX_ARRAY:
            raise self.refuse(f"a list of {count} elements")
        if element in _SCALARS:
            return list(self.unpack(f"{count}{_SCALARS[element]}"))
        if element != _STRING:
            raise self.refuse(f"a list of elements of type {element}")
        return [self.text() for _ in range(count)]
