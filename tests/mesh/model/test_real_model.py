"""The real model, packed and loaded from shards, is the model that transformers reads from the same GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mesh.model.dequantize import dequantize
from mesh.model.llama import Stage
from mesh.model.local import generate, prefill
from mesh.model.prefill import PREFILL_CHUNK
from mesh.model.sampling import SamplingParams
from mesh.weights.shards.shard import read_shard
from tests.support.agreement import assert_greedy_agrees, reference_model, teacher_forced_logits
from tests.support.prompts import real_prompts
from tests.support.releases import PackedRelease

pytestmark = pytest.mark.real_model

NEW_TOKENS = 32
NUM_PROMPTS = 8


@pytest.fixture(scope="module")
def reference(real_gguf: Path) -> Any:
    return reference_model(real_gguf)


def test_prompts_cover_a_single_token_to_more_than_two_chunks(real_release: PackedRelease) -> None:
    lengths = [len(prompt) for prompt in real_prompts(real_release)]
    assert len(set(lengths)) == len(lengths) == NUM_PROMPTS
    assert min(lengths) == 1
    assert max(lengths) > 2 * PREFILL_CHUNK


@pytest.mark.parametrize("number", range(NUM_PROMPTS))
def test_greedy_tokens_equal_transformers(
    real_release: PackedRelease, real_stage: Stage, reference: Any, number: int
) -> None:
    prompt = real_prompts(real_release)[number]
    tokens = list(generate(real_stage, prompt, SamplingParams(), NEW_TOKENS))
    assert_greedy_agrees(tokens, teacher_forced_logits(reference, prompt, tokens))


def test_logits_equal_transformers_after_two_chunks(
    real_release: PackedRelease, real_stage: Stage, reference: Any
) -> None:
    prompt = max(real_prompts(real_release), key=len)[: 2 * PREFILL_CHUNK]
    ours = torch.from_numpy(prefill(real_stage, real_stage.new_cache(len(prompt)), prompt))
    [theirs] = teacher_forced_logits(reference, prompt, [0])
    # Logits of this model reach 20 to 30; sums of 1536 products in another order differ in the sixth digit.
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("role", "layer"), [("embed", None), ("layer", 0), ("layer", 17), ("head", None)])
def test_dequantised_weights_equal_those_transformers_reads(
    real_release: PackedRelease, reference: Any, role: str, layer: int | None
) -> None:
    release, theirs = real_release.open(), reference.state_dict()
    ref = release.manifest.shard(role, layer)
    shard = read_shard(release.shard_path(ref), ref)
    prefix = "model." if layer is None else f"model.layers.{layer}."
    for name, info in shard.tensors.items():
        ours = torch.empty(info.shape)
        dequantize(info, shard.bytes_of(name), ours)
        # Of q_proj and k_proj the GGUF has the rows in another RoPE order; both readers undo it.
        assert torch.equal(ours, theirs[prefix + name]), name
