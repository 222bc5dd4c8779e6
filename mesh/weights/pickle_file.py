"""Tensors in a file of ``torch.save`` (``pytorch_model.bin``, ``consolidated.00.pth``), found without running it.

Such a file is a zip: a pickle that describes the tensors, and their storages as plain bytes beside it. A pickle is a
program and may call anything; this reader is not an interpreter of it. It knows the opcodes that describe a dictionary of
tensors and the seven names they need, calls nothing, and refuses anything else by name. Weights are read only while
they are streamed.

    tensors = read_pickle(Path("pytorch_model.bin"))     # name -> TensorSource

Follows ``torch/serialization.py`` (``_save``, ``persistent_id``), ``torch/_utils.py`` (``_rebuild_tensor_v2``) and
``pickletools.py``. Neither torch nor ``pickle`` is imported.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.errors import CheckpointUnsupported
from mesh.weights.checkpoint import file_chunks
from mesh.weights.shard import CHUNK_BYTES, TensorSource

MAX_PICKLE_BYTES = 64 * 1024 * 1024  # of a thousand tensors it has 200 kB
_LOCAL_HEADER_BYTES = 30  # APPNOTE.TXT 4.3.7
_TORCH_LEGACY = (
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
    b"ustar",
)  # a bare pickle, a tar: torch before 1.6

# Storages by what we call their type and bytes per element; those that no weight has may lie in a file and stay unused.
_STORAGES: Mapping[str, tuple[str, int]] = {
    "torch FloatStorage": ("F32", 4),
    "torch HalfStorage": ("F16", 2),
    "torch BFloat16Storage": ("BF16", 2),
    "torch DoubleStorage": ("F64", 8),
    "torch LongStorage": ("I64", 8),
    "torch IntStorage": ("I32", 4),
    "torch ShortStorage": ("I16", 2),
    "torch CharStorage": ("I8", 1),
    "torch ByteStorage": ("U8", 1),
    "torch BoolStorage": ("BOOL", 1),
}
_REBUILD, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_ORDERED_DICT = "collections OrderedDict"
_ALLOWED = frozenset({*_STORAGES, _REBUILD, _PARAMETER, _ORDERED_DICT})


@dataclass(frozen=True, slots=True)
class _Name:
    """A class or function that the pickle asks for; never looked up."""

    text: str


@dataclass(frozen=True, slots=True)
class _Storage:
    type: str
    element_size: int
    key: str  # the name of its record
    num_elements: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    start: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements


def read_pickle(path: Path) -> dict[str, TensorSource]:
    """The tensors by name. Raises CheckpointUnsupported, having run nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = {info.filename: info for info in archive.infolist()}
            if len(records) != len(archive.infolist()):
                raise _refuse(path, "two records of one name")
            program, prefix = _program(path, archive, records)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as exc:
        raise _not_a_zip(path) from exc
    try:
        value = _described(program)
    except _Forbidden as exc:
        raise CheckpointUnsupported(f"{path}: its pickle asks for {exc}; nothing was run") from exc
    except (ValueError, IndexError, KeyError, TypeError) as exc:
        raise _refuse(path, f"a pickle that does not describe tensors ({exc})") from exc
    if not isinstance(value, dict):
        raise _refuse(path, "a pickle of something else than named tensors")
    return {
        name: _source(path, records, prefix, name, tensor)
        for name, tensor in value.items()
        if isinstance(tensor, _Tensor)
    }


def _program(
    path: Path, archive: zipfile.ZipFile, records: Mapping[str, zipfile.ZipInfo]
) -> tuple[bytes, str]:
    """The pickle, and what the names of its storages begin with."""
    found = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(found) != 1:
        raise _refuse(path, f"{len(found)} records data.pkl")
    prefix = found[0].removesuffix("data.pkl")
    info = records[found[0]]
    if info.file_size > MAX_PICKLE_BYTES:  # size before content
        raise _refuse(path, f"a pickle of {info.file_size} bytes, at most {MAX_PICKLE_BYTES} are read")
    order = records.get(f"{prefix}byteorder")
    if order is not None and (order.file_size > 16 or archive.read(order) != b"little"):
        raise _refuse(path, "its bytes are not in little-endian order")
    return archive.read(info), prefix


class _Forbidden(Exception):
    """What the pickle may not ask for, by name."""


_MARK = object()


def _described(program: bytes) -> Any:
    """What the pickle describes: texts, numbers, dictionaries, tuples and tensors. Nothing it names is called."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def last(count: int) -> list[Any]:
        if len(stack) < count:
            raise ValueError("an empty stack")
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(program):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(last(int(opcode.name[-1]))))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case ("BININT" | "BININT1" | "BININT2" | "LONG1" | "INT" | "LONG" | "BINFLOAT"
                  | "BINUNICODE" | "SHORT_BINUNICODE" | "UNICODE"):  # fmt: skip
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[int(argument)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[int(argument)])
            case "GLOBAL" | "INST":
                stack.append(_allowed(argument))
            case "STACK_GLOBAL":
                stack.append(_allowed(" ".join(_text(part) for part in last(2))))
            case "BINPERSID":
                stack.append(_storage(*last(1)))
            case "REDUCE":
                stack.append(_made(*last(2)))
            case "SETITEM":
                _set(stack[-3], last(2))
            case "SETITEMS":
                items = since_mark()
                _set(stack[-1], items)
            case "APPEND" | "APPENDS":
                items = last(1) if opcode.name == "APPEND" else since_mark()
                if not isinstance(stack[-1], list):
                    raise ValueError("items for something else than a list")
                stack[-1].extend(items)
            case "BUILD":  # attributes of a dictionary (``_metadata``): nothing that we need
                last(1)
                if not isinstance(stack[-1], dict | _Tensor):
                    raise _Forbidden("the state of an object")
            case "STOP":
                return stack[-1]
            case other:
                raise _Forbidden(f"the instruction {other}")
    raise ValueError("no end")


def _allowed(name: str) -> _Name:
    if name not in _ALLOWED:
        raise _Forbidden(name.replace(" ", ".", 1)[:100].encode("ascii", "backslashreplace").decode())
    return _Name(name)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("a name that is not a text")
    return value


def _set(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError("items for something else than a dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int):  # a nested tuple may take forever to hash
            raise ValueError("a key that is neither a text nor a number")
        target[key] = value


def _storage(identity: Any) -> _Storage:
    """``("storage", class, key, location, number of elements)``."""
    match identity:
        case ("storage", _Name(text), str(key), str(), int(num_elements)) if text in _STORAGES:
            return _Storage(*_STORAGES[text], key, num_elements)
    raise ValueError("a storage of another shape than torch writes")


def _made(name: Any, arguments: Any) -> Any:
    match name, arguments:
        case _Name(text="collections OrderedDict"), ():
            return {}
        case _Name(text="torch._utils _rebuild_parameter"), (_Tensor() as tensor, *_):
            return tensor
        case _Name(text="torch._utils _rebuild_tensor_v2"), (_Storage() as storage, int(start), tuple(shape), tuple(strides), *_):  # fmt: skip
            if len(shape) != len(strides) or any(
                type(size) is not int or size < 0 for size in (*shape, *strides)
            ):
                raise ValueError("a tensor without a shape")
            if start < 0 or len(shape) > 8:
                raise ValueError("a tensor out of bounds")
            return _Tensor(storage, start, shape, strides)
    text = name.text.replace(" ", ".", 1) if isinstance(name, _Name) else "something"
    raise ValueError(f"a call of {text} unlike torch's")


def _source(
    path: Path, records: Mapping[str, zipfile.ZipInfo], prefix: str, name: str, tensor: _Tensor
) -> TensorSource:
    storage, where = tensor.storage, f"tensor {str(name)[:80]!r}"
    info = records.get(f"{prefix}data/{storage.key}")
    if info is None:
        raise _refuse(path, f"{where} has no bytes, record data/{storage.key[:40]} is missing")
    size = storage.num_elements * storage.element_size
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != size:
        raise _refuse(path, f"{where}: a record of {info.file_size} bytes, expected {size} uncompressed")
    count = math.prod(tensor.shape)
    reach = sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.strides, strict=True))
    if count and tensor.start + reach >= storage.num_elements:
        raise _refuse(path, f"{where} reaches past its storage")
    if count > storage.num_elements:
        raise _refuse(path, f"{where} repeats elements of its storage, as no weight does")
    start = _data_offset(path, info) + tensor.start * storage.element_size
    if _is_contiguous(tensor):
        return TensorSource(
            name, storage.type, tensor.shape, lambda: file_chunks(path, start, count * storage.element_size)
        )
    span = (reach + 1) * storage.element_size
    return TensorSource(name, storage.type, tensor.shape, lambda: _strided(path, start, span, tensor))


def _is_contiguous(tensor: _Tensor) -> bool:
    expected = 1
    for extent, stride in reversed(list(zip(tensor.shape, tensor.strides, strict=True))):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True


def _strided(path: Path, start: int, span: int, tensor: _Tensor) -> Iterator[bytes]:
    """A transposed or otherwise strided tensor, its elements in row-major order; takes memory for its span."""
    import numpy as np

    data = np.frombuffer(b"".join(file_chunks(path, start, span)), f"V{tensor.storage.element_size}")
    steps = tuple(stride * data.itemsize for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(data, tensor.shape, steps, writeable=False)
    rows = max(1, CHUNK_BYTES // max(1, view[:1].nbytes))
    for row in range(0, len(view), rows):
        yield view[row : row + rows].tobytes()


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a record's bytes begin: behind its local header, whose extra field differs from the directory's."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER_BYTES)
        if len(header) != _LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
            raise _refuse(path, f"record {info.filename[:80]!r} has no header")
        offset = info.header_offset + _LOCAL_HEADER_BYTES
        offset += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        if offset + info.file_size > file.seek(0, 2):
            raise _refuse(
                path, f"record {info.filename[:80]!r} ends behind the file's end; the file is cut short"
            )
    return offset


def _not_a_zip(path: Path) -> CheckpointUnsupported:
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_TORCH_LEGACY[0]) or _TORCH_LEGACY[1] in start:
        return _refuse(
            path, "torch wrote it before version 1.6; load it there and save it again with torch.save"
        )
    return _refuse(path, "it is no whole zip file")


def _refuse(path: Path, what: str) -> CheckpointUnsupported:
    return CheckpointUnsupported(f"{path}: not a file of torch.save we can read: {what}")
