"""What pack accepts, a node runs: from a directory to shards to a stage, with the logits of the directory itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mesh.layers import LayerRange
from mesh.model.loader import load_stage
from mesh.model.local import prefill
from mesh.model.memory import plan_stage
from tests.support.agreement import reference_model, teacher_forced_logits
from tests.support.releases import PackedRelease, pack_tiny

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
SHAPES: dict[str, dict[str, Any]] = {
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"architecture": "MistralForCausalLM", "sliding_window": 9},
    "qwen2": {"architecture": "Qwen2ForCausalLM", "tied": True, "rope": YARN},
    "qwen3": {"architecture": "Qwen3ForCausalLM"},
}
PROMPT = list(range(150))


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES.keys())
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PackedRelease:
    return pack_tiny(tmp_path_factory.mktemp("packed"), num_layers=3, **request.param)


def logits_of(packed: PackedRelease, cuts: tuple[int, ...]) -> torch.Tensor:
    """Through stages cut at ``cuts``, each loaded from its own shards alone."""
    from mesh.model.llama import StageStep

    release, config = packed.open(), packed.manifest.config
    hidden: torch.Tensor | None = None
    for start, stop in zip((0, *cuts), (*cuts, config.num_layers), strict=True):
        layers = LayerRange(start, stop)
        paths: dict[Any, Path] = {ref: release.shard_path(ref) for ref in packed.manifest.shards_for(layers)}
        stage = load_stage(config, layers, paths)
        ids = torch.tensor(PROMPT) if hidden is None else None
        [hidden] = stage.run([StageStep(stage.new_cache(len(PROMPT)), 0, ids, hidden, sample=True)])
    assert hidden is not None
    return hidden


def test_packed_logits_equal_transformers(packed: PackedRelease) -> None:
    [theirs] = teacher_forced_logits(reference_model(packed.directory.parent / "checkpoint"), PROMPT, [0])
    torch.testing.assert_close(logits_of(packed, ()), theirs, atol=1e-4, rtol=0)


def test_any_cut_gives_the_same_bits(packed: PackedRelease) -> None:
    whole = logits_of(packed, ())
    for cuts in ((1,), (2,), (1, 2)):
        assert torch.equal(logits_of(packed, cuts), whole)


def test_one_chunk_and_many_agree(packed: PackedRelease) -> None:
    release, config = packed.open(), packed.manifest.config
    layers = LayerRange(0, config.num_layers)
    stage = load_stage(
        config, layers, {ref: release.shard_path(ref) for ref in packed.manifest.shards_for(layers)}
    )
    chunked = torch.from_numpy(prefill(stage, stage.new_cache(len(PROMPT)), PROMPT))
    torch.testing.assert_close(chunked, logits_of(packed, ()), atol=1e-4, rtol=0)


def test_memory_plan_counts_every_weight(packed: PackedRelease) -> None:
    tensors = load_file(packed.directory.parent / "checkpoint" / "model.safetensors")
    plan = plan_stage(packed.manifest.config, LayerRange(0, 3), kv_tokens=0)
    assert plan.weight_bytes == 4 * sum(tensor.numel() for tensor in tensors.values())


def test_the_manifest_carries_the_architecture(packed: PackedRelease) -> None:
    assert packed.open().manifest.config == packed.manifest.config
