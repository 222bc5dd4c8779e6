"""Verified shards on disk to a stage in memory.

Each shard is hashed while it is read into the memory it is used from, its tensors are written into their places in the
stage, and it is forgotten before the next: what is loaded is what the manifest names, or nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from mesh.architecture import LlamaConfig
from mesh.errors import NotFound, ShardCorrupt
from mesh.layers import LayerRange
from mesh.model.dequantize import dequantize
from mesh.model.llama import Stage
from mesh.model.stage_weights import StageWeights
from mesh.weights.manifest import ShardRef
from mesh.weights.shard import Shard, read_shard
from mesh.weights.tensor_types import WEIGHT_TYPES

_REPACK = "its publisher must pack it again"


def load_stage(
    config: LlamaConfig,
    layers: LayerRange,
    paths: Mapping[ShardRef, Path],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Stage:
    """``paths`` hold those of ``manifest.shards_for(layers)``; ``on_progress`` gets shards done and in all.

    Raises NotFound or ShardCorrupt by the shard's name.
    """
    weights = StageWeights(config, layers, device, dtype)
    refs = {(ref.role, ref.layer): ref for ref in paths}
    needed = list(weights.shards())
    for role, layer in needed:
        if (role, layer) not in refs:
            what = role if layer is None else f"layer {layer}"
            raise NotFound(f"no shard for {what}, which a stage of layers {layers} needs; fetch it first")
    for done, key in enumerate(needed, start=1):
        ref = refs[key]
        _fill(weights.places(*key), read_shard(paths[ref], ref), ref)
        on_progress(done, len(needed))
    return Stage(config, layers, weights, device, dtype)


def _fill(places: Mapping[str, torch.Tensor], shard: Shard, ref: ShardRef) -> None:
    """All tensors are checked before the first is written."""
    for name in sorted(places.keys() | shard.tensors.keys()):
        wanted = str(list(places[name].shape)) if name in places else "no such tensor"
        found = str(list(shard.tensors[name].shape)) if name in shard.tensors else "none"
        if found != wanted:
            raise ShardCorrupt(ref.file, f"{name} {wanted}", found, _REPACK)
        if (kind := shard.tensors[name].type) not in WEIGHT_TYPES:
            raise ShardCorrupt(ref.file, f"{name} of type {', '.join(WEIGHT_TYPES)}", kind, _REPACK)
    for name, place in places.items():
        dequantize(shard.tensors[name], shard.bytes_of(name), place)
