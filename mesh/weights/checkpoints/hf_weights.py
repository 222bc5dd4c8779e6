"""The tensors of a Hugging Face directory, in whichever of its four layouts the weights lie.

    model.safetensors                                    one file
    model-00001-of-00003.safetensors, …                  several, named by model.safetensors.index.json
    pytorch_model.bin                                    one pickle, read by ``pickle_file.py`` without running it
    pytorch_model-00001-of-00003.bin, …                  several, named by pytorch_model.bin.index.json

An index is believed in nothing: every file it names must be there, and hold exactly the tensors it says. Knows names and
files; what the tensors mean is ``hf_checkpoint.py``'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh import strict_json
from mesh.errors import CheckpointUnsupported, NotFound
from mesh.weights.checkpoints.checkpoint import tensor_in_file
from mesh.weights.checkpoints.pickle_file import read_pickle
from mesh.weights.shards.shard import TensorSource
from mesh.weights.shards.tensor_file import parse_safetensors

WEIGHTS = "model.safetensors"
MAX_INDEX_BYTES = 16 * 1024 * 1024
MAX_HEADER_BYTES = 100_000_000  # safetensors' own bound

_PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")  # beside the index, never a path


@dataclass(frozen=True, slots=True)
class HfWeights:
    tensors: Mapping[str, TensorSource]
    files: tuple[Path, ...]  # everything that was read to find them


def find_weights(directory: Path) -> HfWeights:
    """The first layout that is there; safetensors before pickles. Raises NotFound or CheckpointUnsupported."""
    readers: tuple[tuple[str, Callable[[Path], dict[str, TensorSource]]], ...] = (
        (WEIGHTS, read_safetensors),
        ("pytorch_model.bin", read_pickle),
    )
    for name, read in readers:
        path, index = directory / name, directory / f"{name}.index.json"
        if path.is_file():
            return HfWeights(read(path), (path,))
        if index.is_file():
            return _indexed(index, read)
    if (directory / "adapter_config.json").is_file():
        raise CheckpointUnsupported(
            f"{directory}: a LoRA adapter, not a model; merge it into its base model (peft: merge_and_unload) and pack that"
        )
    raise NotFound(
        f"{directory / WEIGHTS} does not exist; expected config.json, tokenizer.json and {WEIGHTS} or pytorch_model.bin, "
        "whole or in parts with their index"
    )


def read_safetensors(path: Path) -> dict[str, TensorSource]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointUnsupported(
                f"{path}: not a safetensors file, its header would have {length} bytes"
            )
        header = file.read(length)
    try:
        tensors, _ = parse_safetensors(header, size - 8 - length, max_bytes=MAX_HEADER_BYTES)
    except ValueError as exc:
        raise CheckpointUnsupported(f"{path}: not a safetensors file we can read: {exc}") from exc
    return {
        name: tensor_in_file(name, info.type, info.shape, path, 8 + length + info.offset)
        for name, info in tensors.items()
    }


def _indexed(index: Path, read: Callable[[Path], dict[str, TensorSource]]) -> HfWeights:
    promised = _weight_map(index)
    tensors: dict[str, TensorSource] = {}
    files = sorted(set(promised.values()))
    for name in files:
        path = index.parent / name
        if not path.is_file():
            raise NotFound(f"{path} does not exist; {index.name} names it")
        for tensor, source in read(path).items():
            if tensor in tensors:
                raise CheckpointUnsupported(f"{path}: tensor {tensor} is in another file too")
            if promised.get(tensor) != name:
                raise CheckpointUnsupported(f"{path}: tensor {tensor} is not where {index.name} says")
            tensors[tensor] = source
    if missing := sorted(promised.keys() - tensors.keys()):
        raise CheckpointUnsupported(
            f"{index.parent / promised[missing[0]]}: tensor {missing[0]}, promised by {index.name}, is missing"
        )
    return HfWeights(tensors, (index, *(index.parent / name for name in files)))


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name to file name."""
    with index.open("rb") as file:
        data = file.read(MAX_INDEX_BYTES + 1)
    try:
        value = strict_json.loads(data, max_bytes=MAX_INDEX_BYTES)
    except ValueError as exc:
        raise CheckpointUnsupported(f"{index}: {exc}") from exc
    promised = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(promised, dict) or not promised:
        raise CheckpointUnsupported(f"{index}: no weight_map in it")
    for name in promised.values():
        if not isinstance(name, str) or not _PART_NAME.fullmatch(name):
            raise CheckpointUnsupported(f"{index}: {str(name)[:80]!r} is not the name of a file beside it")
    return promised
