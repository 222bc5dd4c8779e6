"""Random weights of any type the native library computes with, and shards made of them without a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gguf
import numpy as np
import torch

from mesh.architecture import LlamaConfig
from mesh.layers import LayerRange
from mesh.model.dequantize import dequantize
from mesh.model.llama import Stage
from mesh.model.stage_weights import ShardKey, StageWeights
from mesh.weights.shards.shard import Shard
from mesh.weights.shards.tensor_file import TensorInfo
from mesh.weights.shards.tensor_types import num_bytes

Array = np.ndarray[Any, Any]

# Where a block's halves lie, bytes of the block, and about how large a weight of random bits is where the scale is one:
# gguf's own quantiser does not write these types.
_HALVES = {
    "Q2_K": ((80, 82), 84, 20),
    "Q3_K": ((108,), 110, 60),
    "Q4_K": ((0, 2), 144, 500),
    "Q5_K": ((0, 2), 176, 1000),
    "Q6_K": ((208,), 210, 1200),
}


def random_weights(type_: str, rows: int, columns: int, rng: np.random.Generator) -> Array:
    """Bytes of a ``[rows, columns]`` matrix of any type, with entries of about ``columns ** -0.5``."""
    if type_ not in _HALVES:
        values = (rng.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)
        stored = gguf.quants.quantize(values, gguf.GGMLQuantizationType[type_])
        return np.ascontiguousarray(stored).view(np.uint8).reshape(-1)
    offsets, block_bytes, largest = _HALVES[type_]
    blocks = rng.integers(0, 256, (rows * columns // 256, block_bytes), dtype=np.uint8)
    for offset in offsets:
        scales = rng.uniform(1, 2, len(blocks)) * columns**-0.5 / largest
        blocks[:, offset : offset + 2] = scales.astype(np.float16).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(-1)


def make_shards(
    config: LlamaConfig,
    layers: LayerRange,
    type_of: Callable[[str], str],
    seed: int = 0,
) -> dict[ShardKey, Shard]:
    """The shards of ``layers``: matrices of ``type_of(name)``, norms F32. A layer is the same in every range."""
    weights = StageWeights(config, layers, "meta", torch.float32)
    shards: dict[ShardKey, Shard] = {}
    for role, layer in weights.shards():
        rng = np.random.default_rng([seed, len(role), 0 if layer is None else layer])
        infos: dict[str, TensorInfo] = {}
        parts: list[bytes] = []
        offset = 0
        for name, place in weights.places(role, layer).items():
            shape = tuple(place.shape)
            if len(shape) == 1:
                type_, data = "F32", (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32).tobytes()
            else:
                type_ = type_of(name)
                data = random_weights(type_, *shape, rng).tobytes()
            assert len(data) == num_bytes(type_, shape)
            infos[name] = TensorInfo(name, type_, shape, offset, len(data))
            parts.append(data)
            offset += len(data)
        shards[role, layer] = Shard(role, layer, "", infos, memoryview(bytearray(b"".join(parts))))
    return shards


def torch_stage(config: LlamaConfig, layers: LayerRange, shards: Mapping[ShardKey, Shard]) -> Stage:
    """The reference: the same weights dequantised to float32."""
    weights = StageWeights(config, layers, "cpu", torch.float32)
    for key in weights.shards():
        for name, place in weights.places(*key).items():
            dequantize(shards[key].tensors[name], shards[key].bytes_of(name), place)
    return Stage(config, layers, weights)
