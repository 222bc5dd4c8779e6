"""Stage computes what transformers computes, for every shape the family comes in."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from mesh.model.local import generate, prefill
from mesh.model.prefill import PREFILL_CHUNK
from mesh.model.sampling import SamplingParams
from tests.support.agreement import (
    assert_greedy_agrees,
    greedy_reference,
    reference_model,
    teacher_forced_logits,
)
from tests.support.tiny_models import write_tiny_checkpoint
from tests.support.tiny_stages import tiny_stage

LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # With head_dim 16 the wavelengths are 6, 20, 63, 199, 628, …: some kept, some blended, some divided.
    "original_max_position_embeddings": 256,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
MISTRAL = {"architecture": "MistralForCausalLM"}
QWEN3 = {"architecture": "Qwen3ForCausalLM", "head_dim": 32, "num_kv_heads": 1}
SHAPES: dict[str, dict[str, Any]] = {
    "multi-head": {"num_heads": 4, "num_kv_heads": 4},
    "grouped-query": {"num_heads": 4, "num_kv_heads": 2},
    "multi-query": {"num_heads": 4, "num_kv_heads": 1},
    "tied": {"tied": True},
    "narrow heads": {"head_dim": 8},
    "wide heads": {"head_dim": 32, "num_kv_heads": 1, "tied": True},
    "linear rope": {"rope": LINEAR},
    "llama3 rope": {"rope": LLAMA3},
    "llama3 rope, wide heads": {"rope": LLAMA3, "head_dim": 32},
    "half-precision file": {"dtype": "F16"},
    "yarn rope": {"rope": YARN, "head_dim": 32},
    "yarn rope, own factors": {
        "rope": YARN | {"beta_fast": 8, "beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 1.2},
        "head_dim": 32,
    },
    "yarn rope, own attention": {"rope": YARN | {"attention_factor": 0.8}},
    "attention biases": {"attention_bias": True},
    "all biases": {"attention_bias": True, "mlp_bias": True, "tied": True},
    "mistral": {**MISTRAL, "sliding_window": None},
    "mistral, window of the context": {**MISTRAL, "sliding_window": 512},
    "mistral, window of two tokens": {**MISTRAL, "sliding_window": 2},
    "mistral, window in a chunk": {**MISTRAL, "sliding_window": 7},
    "mistral, window of a chunk": {**MISTRAL, "sliding_window": PREFILL_CHUNK},
    "mistral, window over chunks": {**MISTRAL, "sliding_window": PREFILL_CHUNK + 50},
    "qwen2": {"architecture": "Qwen2ForCausalLM", "use_sliding_window": False, "sliding_window": 32},
    "qwen2, tied, yarn": {"architecture": "Qwen2ForCausalLM", "tied": True, "rope": YARN},
    "qwen3": QWEN3,
    "qwen3, biases": {**QWEN3, "attention_bias": True},
}
# A single token; around a chunk's border; more than two chunks.
LENGTHS = (1, 2, 17, PREFILL_CHUNK, PREFILL_CHUNK + 1, 2 * PREFILL_CHUNK + 5)


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES.keys())
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), num_layers=3, seed=7, **request.param)


def prompt_of(length: int) -> list[int]:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def test_prefill_logits_equal_transformers(checkpoint: Path) -> None:
    stage, model = tiny_stage(checkpoint), reference_model(checkpoint)
    for length in LENGTHS:
        ours = prefill(stage, stage.new_cache(length), prompt_of(length))
        [theirs] = teacher_forced_logits(model, prompt_of(length), [0])
        torch.testing.assert_close(torch.from_numpy(ours), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", [1, 2 * PREFILL_CHUNK + 5])
def test_greedy_tokens_equal_transformers(checkpoint: Path, length: int) -> None:
    tokens = list(generate(tiny_stage(checkpoint), prompt_of(length), SamplingParams(), 16))
    _, logits = greedy_reference(reference_model(checkpoint), prompt_of(length), 16)
    assert_greedy_agrees(tokens, logits)


def test_rope_stretching_changes_the_logits(tmp_path: Path) -> None:
    # Else the equalities above would also hold for a scaling that both ignore.
    rows = []
    for name, rope in (("plain", None), ("linear", LINEAR), ("llama3", LLAMA3), ("yarn", YARN)):
        stage = tiny_stage(write_tiny_checkpoint(tmp_path / name, num_layers=3, seed=7, rope=rope))
        rows.append(prefill(stage, stage.new_cache(100), prompt_of(100)))
    for one, other in combinations(range(4), 2):
        assert abs(rows[one] - rows[other]).max() > 0.01


def test_window_biases_and_norms_change_the_logits(tmp_path: Path) -> None:
    def logits(name: str, **shape: Any) -> Any:
        stage = tiny_stage(write_tiny_checkpoint(tmp_path / name, num_layers=3, seed=7, **shape))
        return prefill(stage, stage.new_cache(100), prompt_of(100))

    plain = logits("plain")
    assert abs(logits("mistral", **MISTRAL, sliding_window=None) - plain).max() == 0
    assert abs(logits("window", **MISTRAL, sliding_window=60) - plain).max() > 0.01
    # Their tensors are drawn after the others, layer by layer, so all but the first layer differ anyway.
    assert abs(logits("biases", attention_bias=True) - plain).max() > 0.01
    assert abs(logits("norms", architecture="Qwen3ForCausalLM") - plain).max() > 0.01
