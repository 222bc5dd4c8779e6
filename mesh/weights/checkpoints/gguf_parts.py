"""A GGUF that ``llama-gguf-split`` cut into files ``name-00001-of-00003.gguf``, read as the one it was.

The first part holds the metadata, every part some of the tensors. All parts must be there, say the same count and
hold together exactly the tensors that the first promises.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from mesh.errors import CheckpointUnsupported, NotFound
from mesh.weights.checkpoints.gguf_file import GgufFile, GgufTensor, read_gguf

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})")
_MAX_PARTS = 9999


def read_whole_gguf(path: Path) -> GgufFile:
    """Of any part, or of a file that is whole. Raises NotFound or CheckpointUnsupported."""
    file = read_gguf(path)
    count = file.metadata.get("split.count", 1)
    if count == 1 or count == 0:
        return file
    paths = _paths(path, count)
    parts = [read_gguf(part) for part in paths]
    tensors: dict[str, GgufTensor] = {}
    for number, part in enumerate(parts):
        if (part.metadata.get("split.no"), part.metadata.get("split.count")) != (number, count):
            raise CheckpointUnsupported(f"{part.path}: not part {number + 1} of {count}, as its name says")
        if twice := sorted(tensors.keys() & part.tensors.keys()):
            raise CheckpointUnsupported(f"{part.path}: tensor {twice[0]!r} is in another part too")
        tensors |= part.tensors
    promised = parts[0].metadata.get("split.tensors.count", len(tensors))
    if promised != len(tensors):
        raise CheckpointUnsupported(
            f"{paths[0]}: {len(tensors)} tensors in {count} parts, expected {promised}"
        )
    return replace(parts[0], tensors=tensors, parts=paths)


def whole_name(path: Path) -> str:
    """``big-00001-of-00003.gguf`` -> ``big``."""
    match = _PART.fullmatch(path.stem)
    return match[1] if match else path.stem


def _paths(path: Path, count: object) -> tuple[Path, ...]:
    match = _PART.fullmatch(path.stem)
    if type(count) is not int or not 1 < count <= _MAX_PARTS or not match or int(match[3]) != count:
        raise CheckpointUnsupported(
            f"{path}: one of {str(count)[:20]} parts, whose name should end in -00001-of-{str(count)[:5]:0>5}{path.suffix}"
        )
    paths = tuple(
        path.with_name(f"{match[1]}-{number:05d}-of-{count:05d}{path.suffix}")
        for number in range(1, count + 1)
    )
    if missing := [part for part in paths if not part.is_file()]:
        raise NotFound(f"{missing[0]} does not exist; {path.name} is one of {count} parts")
    return paths
