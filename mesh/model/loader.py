"""Verified shards on disk to a stage in memory.

Each shard is hashed while it is read into the memory it is used from: what is loaded is what the manifest names, or
nothing is. The native engine goes on using that memory. For torch a shard's tensors are written into their places in the
stage, and it is forgotten before the next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from mesh.architecture import LlamaConfig
from mesh.errors import NotFound, ShardCorrupt, UsageError
from mesh.layers import LayerRange
from mesh.model.dequantize import dequantize
from mesh.model.engines import LoadedStage, choose_engine
from mesh.model.llama import Stage
from mesh.model.native_stage import NativeStage, unsupported_features, unsupported_types
from mesh.model.stage_weights import ShardKey, StageWeights
from mesh.weights.shards.shard import Shard, read_shard
from mesh.weights.shards.tensor_types import WEIGHT_TYPES
from mesh.weights.trust.manifest import ShardRef

logger = logging.getLogger(__name__)

_REPACK = "its publisher must pack it again"


def load_stage(
    config: LlamaConfig,
    layers: LayerRange,
    paths: Mapping[ShardRef, Path],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    engine: str = "torch",
) -> LoadedStage:
    """``paths`` hold those of ``manifest.shards_for(layers)``; ``on_progress`` gets shards done and in all.

    Computes with as many threads as torch is set to. Raises NotFound or ShardCorrupt by the shard's name, UsageError if
    ``engine`` is native and cannot be.
    """
    layout = StageWeights(config, layers, "meta", dtype)
    refs = {(ref.role, ref.layer): ref for ref in paths}
    needed = list(layout.shards())
    for role, layer in needed:
        if (role, layer) not in refs:
            what = role if layer is None else f"layer {layer}"
            raise NotFound(f"no shard for {what}, which a stage of layers {layers} needs; fetch it first")

    def read(key: ShardKey) -> Shard:
        shard = read_shard(paths[refs[key]], refs[key])
        _check(layout.places(*key), shard, refs[key])
        return shard

    if choose_engine(engine, device).name == "native":
        shards: dict[ShardKey, Shard] = {}
        unsupported = unsupported_features(config)
        if not unsupported:
            shards, types = _read_for_native(needed, read, on_progress)
            if not types:
                return NativeStage(config, layers, shards, threads=torch.get_num_threads())
            unsupported = sorted(types)
        reason = f"layers {layers} have {', '.join(unsupported)}, which the native engine does not compute"
        if engine == "native":
            raise UsageError(f"{reason}; use --engine torch")
        logger.warning("torch computes, in float32", extra={"reason": reason})
        del shards
    weights = StageWeights(config, layers, device, dtype)
    for done, key in enumerate(needed, start=1):
        shard = read(key)
        for name, place in weights.places(*key).items():
            dequantize(shard.tensors[name], shard.bytes_of(name), place)
        del shard
        on_progress(done, len(needed))
    return Stage(config, layers, weights, device, dtype)


def _read_for_native(
    needed: Sequence[ShardKey], read: Callable[[ShardKey], Shard], on_progress: Callable[[int, int], None]
) -> tuple[dict[ShardKey, Shard], set[str]]:
    """The shards, or the types of the first one that the library does not take."""
    shards: dict[ShardKey, Shard] = {}
    for done, key in enumerate(needed, start=1):
        shards[key] = read(key)
        if unsupported := unsupported_types({key: shards[key]}):
            return {}, unsupported
        on_progress(done, len(needed))
    return shards, set()


def _check(places: Mapping[str, torch.Tensor], shard: Shard, ref: ShardRef) -> None:
    """All tensors are there, of the right shape and of a type that can be read; nothing else is."""
    for name in sorted(places.keys() | shard.tensors.keys()):
        wanted = str(list(places[name].shape)) if name in places else "no such tensor"
        found = str(list(shard.tensors[name].shape)) if name in shard.tensors else "none"
        if found != wanted:
            raise ShardCorrupt(ref.file, f"{name} {wanted}", found, _REPACK)
        if (kind := shard.tensors[name].type) not in WEIGHT_TYPES:
            raise ShardCorrupt(ref.file, f"{name} of type {', '.join(WEIGHT_TYPES)}", kind, _REPACK)
