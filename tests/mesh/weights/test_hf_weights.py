"""Weights come in bit for bit in every layout Hugging Face has, and an index that lies is found out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mesh.errors import CheckpointUnsupported, NotFound
from mesh.weights.checkpoints.checkpoint import open_checkpoint
from tests.mesh.weights.test_gguf_checkpoint import by_hf_name, bytes_of
from tests.support.tiny_models import write_tiny_checkpoint

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny-llama", num_layers=2)


def all_bytes(directory: Path) -> dict[str, bytes]:
    return {name: bytes_of(source) for name, source in by_hf_name(open_checkpoint(directory)).items()}


def take_weights(directory: Path) -> Tensors:
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    return tensors


def split(directory: Path, kind: str = "safetensors", parts: int = 3) -> dict[str, Any]:
    """Replace the one file by ``parts`` and an index, as transformers writes them. Returns the index."""
    tensors = take_weights(directory)
    stem, suffix, save = {
        "safetensors": ("model", "safetensors", save_file),
        "bin": ("pytorch_model", "bin", torch.save),
    }[kind]
    weight_map = {}
    for part in range(parts):
        name = f"{stem}-{part + 1:05d}-of-{parts:05d}.{suffix}"
        chosen = {key: tensors[key] for key in sorted(tensors)[part::parts]}
        save(chosen, directory / name)
        weight_map |= dict.fromkeys(chosen, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return index


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_parts_with_an_index_come_in_as_the_one_file_they_were(tiny: Path, kind: str) -> None:
    expected = all_bytes(tiny)
    split(tiny, kind)
    assert all_bytes(tiny) == expected
    names = {path.name for path in open_checkpoint(tiny).source_files}
    assert len([name for name in names if "-of-00003" in name]) == 3
    assert any(name.endswith(".index.json") for name in names)  # so that the source digest covers all of them


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_pickle_comes_in_bit_for_bit(tiny: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in take_weights(tiny).items()}
    torch.save(tensors, tiny / "pytorch_model.bin")
    expected = {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}
    assert all_bytes(tiny) == expected
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    assert open_checkpoint(tiny).quantization == kinds[dtype]


def test_safetensors_win_over_a_pickle_beside_them(tiny: Path) -> None:
    (tiny / "pytorch_model.bin").write_bytes(b"anything")
    assert "pytorch_model.bin" not in {path.name for path in open_checkpoint(tiny).source_files}


def drop_a_part(directory: Path, index: dict[str, Any]) -> None:
    (directory / "model-00002-of-00003.safetensors").unlink()


def move_a_tensor(directory: Path, index: dict[str, Any]) -> None:
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00003.safetensors"
    if load_file(directory / "model-00001-of-00003.safetensors").get("model.norm.weight") is not None:
        index["weight_map"]["model.norm.weight"] = "model-00002-of-00003.safetensors"


def promise_too_much(directory: Path, index: dict[str, Any]) -> None:
    index["weight_map"]["model.layers.9.mlp.up_proj.weight"] = "model-00001-of-00003.safetensors"


def promise_too_little(directory: Path, index: dict[str, Any]) -> None:
    del index["weight_map"]["model.norm.weight"]


def save_a_tensor_twice(directory: Path, index: dict[str, Any]) -> None:
    for part in (1, 2, 3):
        path = directory / f"model-0000{part}-of-00003.safetensors"
        save_file(load_file(path) | {"model.norm.weight": torch.ones(64)}, path)


def leave_the_directory(directory: Path, index: dict[str, Any]) -> None:
    index["weight_map"]["model.norm.weight"] = "../model.safetensors"


@pytest.mark.parametrize(
    ("break_it", "error", "says"),
    [
        (drop_a_part, NotFound, "model-00002-of-00003.safetensors does not exist"),
        (move_a_tensor, CheckpointUnsupported, r"model\.norm\.weight is not where"),
        (promise_too_much, CheckpointUnsupported, r"layers\.9\.mlp\.up_proj\.weight, promised by .* is missing"),
        (promise_too_little, CheckpointUnsupported, r"model\.norm\.weight is not where"),
        (save_a_tensor_twice, CheckpointUnsupported, r"model\.norm\.weight is (in another file too|not where)"),
        (leave_the_directory, CheckpointUnsupported, "not the name of a file beside it"),
    ],
)  # fmt: skip
def test_an_index_that_lies_is_refused_by_name(
    tiny: Path, break_it: Callable[[Path, dict[str, Any]], None], error: type[Exception], says: str
) -> None:
    index = split(tiny)
    break_it(tiny, index)
    (tiny / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(error, match=says):
        open_checkpoint(tiny)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_an_index_without_a_map_is_refused(tiny: Path, content: str) -> None:
    split(tiny)
    (tiny / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointUnsupported, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(tiny)


def test_a_lora_adapter_is_refused_by_name(tiny: Path) -> None:
    (tiny / "model.safetensors").rename(tiny / "adapter_model.safetensors")
    (tiny / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointUnsupported, match=r"a LoRA adapter.*merge it"):
        open_checkpoint(tiny)


def test_every_layout_makes_the_same_shards(tiny: Path) -> None:
    one = open_checkpoint(tiny)
    split(tiny, "bin", parts=2)
    other = open_checkpoint(tiny)
    assert one.config == other.config
    assert [(p, [(t.name, t.type, t.shape) for t in s]) for p, s in one.shards.items()] == [
        (p, [(t.name, t.type, t.shape) for t in s]) for p, s in other.shards.items()
    ]
