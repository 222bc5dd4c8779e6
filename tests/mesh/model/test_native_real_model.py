"""The real model on its Q4_1 blocks: how often the native stage chooses what the float32 stage chose."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from mesh.layers import LayerRange
from mesh.model.kv_cache import KvCache
from mesh.model.llama import Stage, StageStep
from mesh.model.native import library
from mesh.model.native_stage import NativeStage
from mesh.weights.shards.shard import read_shard
from tests.support.prompts import real_prompts
from tests.support.releases import PackedRelease

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not library.is_available(), reason="the native library is not built"),
]

NEW_TOKENS = 48
LEAST_AGREEMENT = 0.95  # of greedy choices; 0.97 when measured


@pytest.fixture(scope="module")
def native_stage(real_release: PackedRelease) -> NativeStage:
    release, config = real_release.open(), real_release.manifest.config
    layers = LayerRange(0, config.num_layers)
    shards = {
        (ref.role, ref.layer): read_shard(release.shard_path(ref), ref)
        for ref in release.manifest.shards_for(layers)
    }
    return NativeStage(config, layers, shards, threads=1)


def prefilled(
    stage: Stage | NativeStage, prompts: Sequence[Sequence[int]]
) -> tuple[list[KvCache], torch.Tensor]:
    """A cache for each prompt, and the logits ``[N, V]`` of the first new token of each."""
    caches = [stage.new_cache(len(prompt) + NEW_TOKENS) for prompt in prompts]
    rows = [
        stage.run([StageStep(cache, 0, torch.tensor(prompt), None, True)])[0]
        for cache, prompt in zip(caches, prompts, strict=True)
    ]
    return caches, torch.stack(rows)


def advanced(stage: Stage | NativeStage, caches: Sequence[KvCache], ids: torch.Tensor) -> torch.Tensor:
    """One more token in every session: logits ``[N, V]``."""
    steps = [StageStep(cache, cache.position, ids[i : i + 1], None, True) for i, cache in enumerate(caches)]
    return torch.stack(stage.run(steps))


def test_greedy_choices_agree_with_float32_on_the_same_history(
    real_release: PackedRelease, real_stage: Stage, native_stage: NativeStage
) -> None:
    prompts = real_prompts(real_release)
    caches, theirs = prefilled(real_stage, prompts)
    native_caches, ours = prefilled(native_stage, prompts)
    agreed = []
    for _ in range(NEW_TOKENS):
        chosen = theirs.argmax(dim=1)
        agreed += (ours.argmax(dim=1) == chosen).tolist()
        theirs, ours = advanced(real_stage, caches, chosen), advanced(native_stage, native_caches, chosen)
    agreement = sum(agreed) / len(agreed)
    assert agreement >= LEAST_AGREEMENT, f"{agreement:.3f} of {len(agreed)} choices agree"
