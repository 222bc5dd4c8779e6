"""Stage computes what transformers computes, for every shape the family comes in."""

from __future__ import annotations

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
    for name, rope in (("plain", None), ("linear", LINEAR), ("llama3", LLAMA3)):
        stage = tiny_stage(write_tiny_checkpoint(tmp_path / name, num_layers=3, seed=7, rope=rope))
        rows.append(prefill(stage, stage.new_cache(100), prompt_of(100)))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs(rows[one] - rows[other]).max() > 0.01
