"""Tensors in a file of ``torch.save`` (``pytorch_model.bin``, ``consolidated.00.pth``), found without running it.

Such a file is a zip: a pickle that describes the tensors (``pickle_program.py``), and their storages as plain bytes beside
it. Weights are read only while they are streamed.

    tensors = read_pickle(Path("pytorch_model.bin"))     # name -> TensorSource

Follows ``torch/serialization.py`` (``_save``). Neither torch nor ``pickle`` is imported.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from mesh.errors import CheckpointUnsupported
from mesh.weights.checkpoints.checkpoint import file_chunks, tensor_in_file
from mesh.weights.checkpoints.pickle_program import Forbidden, PickledTensor, described
from mesh.weights.shards.shard import CHUNK_BYTES, FileRange, TensorSource

MAX_PICKLE_BYTES = 64 * 1024 * 1024  # of a thousand tensors it has 200 kB
_LOCAL_HEADER_BYTES = 30  # APPNOTE.TXT 4.3.7
_TORCH_LEGACY = (
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
    b"ustar",
)  # a bare pickle, a tar: torch before 1.6


def read_pickle(path: Path) -> dict[str, TensorSource]:
    """The tensors by name. Raises CheckpointUnsupported, having run nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = {info.filename: info for info in archive.infolist()}
            if len(records) != len(archive.infolist()):
                raise _refuse(path, "two records of one name")
            program, prefix = _program(path, archive, records)
    # NotImplementedError is zipfile's word for a compression it lacks, RuntimeError for an encrypted record.
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as exc:
        raise _not_a_zip(path) from exc
    try:
        value = described(program)
    except Forbidden as exc:
        raise CheckpointUnsupported(f"{path}: its pickle asks for {exc}; nothing was run") from exc
    except (ValueError, IndexError, KeyError, TypeError) as exc:
        raise _refuse(path, f"a pickle that does not describe tensors ({exc})") from exc
    if not isinstance(value, dict):
        raise _refuse(path, "a pickle of something else than named tensors")
    return {
        name: _source(path, records, prefix, name, tensor)
        for name, tensor in value.items()
        if isinstance(tensor, PickledTensor)
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


def _source(
    path: Path, records: Mapping[str, zipfile.ZipInfo], prefix: str, name: str, tensor: PickledTensor
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
        return tensor_in_file(name, storage.type, tensor.shape, path, start)
    span = (reach + 1) * storage.element_size
    # Elements that are skipped could not be told from the tensor.
    origin = (FileRange(path, start, span),) if reach + 1 == count else ()
    return TensorSource(name, storage.type, tensor.shape, lambda: _strided(path, start, span, tensor), origin)


def _is_contiguous(tensor: PickledTensor) -> bool:
    expected = 1
    for extent, stride in reversed(list(zip(tensor.shape, tensor.strides, strict=True))):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True


def _strided(path: Path, start: int, span: int, tensor: PickledTensor) -> Iterator[bytes]:
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
