"""On a GPU a stage computes the same model: float32 within rounding, bfloat16 within its precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mesh.layers import LayerRange
from mesh.model.llama import StageStep, kernel_id
from mesh.model.local import generate_with_logits, prefill
from mesh.model.sampling import SamplingParams
from tests.support.agreement import assert_greedy_agrees
from tests.support.tiny_models import write_tiny_checkpoint
from tests.support.tiny_stages import tiny_stage

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device in this machine"),
]

PROMPT = list(range(1, 200))  # two chunks


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), tied=request.param)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.5)], ids=str)
def test_logits_agree_with_the_cpu(checkpoint: Path, dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = tiny_stage(checkpoint, device="cuda:0", dtype=dtype), tiny_stage(checkpoint)
    logits = [prefill(stage, stage.new_cache(len(PROMPT)), PROMPT) for stage in (ours, theirs)]
    torch.testing.assert_close(*map(torch.from_numpy, logits), atol=tolerance, rtol=0)


def test_greedy_tokens_in_float32_agree_with_the_cpu(checkpoint: Path) -> None:
    ours = tiny_stage(checkpoint, device="cuda:0")
    tokens = [token for token, _ in generate_with_logits(ours, PROMPT, SamplingParams(), 16)]
    rows = [row for _, row in generate_with_logits(tiny_stage(checkpoint), PROMPT, SamplingParams(), 16)]
    assert_greedy_agrees(tokens, torch.stack([torch.from_numpy(row) for row in rows]))


def test_cut_across_gpu_and_cpu_agrees_with_the_cpu(checkpoint: Path) -> None:
    ids = torch.tensor(PROMPT[:100])
    first, last = (
        tiny_stage(checkpoint, LayerRange(0, 2), device="cuda:0"),
        tiny_stage(checkpoint, LayerRange(2, 4)),
    )
    [hidden] = first.run([StageStep(first.new_cache(100), 0, ids.to("cuda:0"), None, False)])
    [logits] = last.run([StageStep(last.new_cache(100), 0, None, hidden, True)])
    whole = tiny_stage(checkpoint)
    expected = prefill(whole, whole.new_cache(100), PROMPT[:100])
    torch.testing.assert_close(logits, torch.from_numpy(expected), atol=1e-3, rtol=0)


def test_kernel_id_names_the_device() -> None:
    assert kernel_id("cuda:0").startswith(f"torch-{torch.__version__.split('+')[0]}-")
    assert kernel_id("cuda:0") != kernel_id("cpu")
