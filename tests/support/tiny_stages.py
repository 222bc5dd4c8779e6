"""Stages straight from a tiny checkpoint's safetensors file: what a node would load, without packing anything."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from mesh.architecture import LlamaConfig
from mesh.layers import LayerRange
from mesh.model.llama import Stage
from mesh.weights.checkpoints.hf_config import llama_config


def tiny_config(directory: Path) -> LlamaConfig:
    return llama_config(json.loads((directory / "config.json").read_text()), {})


def tiny_stage(
    directory: Path,
    layers: LayerRange | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Stage:
    """The stage of ``layers``, by default all of them."""
    config = tiny_config(directory)
    layers = layers or LayerRange(0, config.num_layers)
    return Stage.from_tensors(config, layers, _load(directory), device, dtype)


@lru_cache(maxsize=16)
def _load(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")
