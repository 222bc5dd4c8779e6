"""The plan of a stage's memory: monotonic, maximal within its bound, and true of a real process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.architecture import LlamaConfig, RopeConfig
from mesh.layers import LayerRange
from mesh.model.memory import largest_range, plan_stage
from tests.support.releases import PackedRelease

MIB = 1 << 20


def config_of(num_layers: int, vocab_size: int = 128_256, tied: bool = False) -> LlamaConfig:
    """Llama 3 8B's shape unless told otherwise."""
    return LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=num_layers,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=vocab_size,
        context_length=8192,
        rms_norm_eps=1e-5,
        rope=RopeConfig(theta=500_000.0),
        tied=tied,
        bos_token_id=None,
        eos_token_ids=(),
    )


@given(data=st.data(), tied=st.booleans())
def test_largest_range_is_the_longest_that_fits(data: st.DataObject, tied: bool) -> None:
    config = config_of(data.draw(st.integers(1, 40)), data.draw(st.sampled_from([1000, 128_256])), tied)
    start = data.draw(st.integers(0, config.num_layers - 1))
    stop = data.draw(st.integers(start + 1, config.num_layers))
    kv_tokens = data.draw(st.integers(0, 32_768))
    memory = data.draw(st.integers(0, 60 << 30))
    found = largest_range(config, start, stop, memory, kv_tokens)

    def fits(end: int) -> bool:
        return plan_stage(config, LayerRange(start, end), kv_tokens).total_bytes <= memory

    if found is None:
        assert not any(fits(end) for end in range(start + 1, stop + 1))
        return
    assert found.start == start
    assert found.stop <= stop
    assert fits(found.stop)
    assert not any(fits(end) for end in range(found.stop + 1, stop + 1))


@given(
    start=st.integers(0, 7),
    length=st.integers(1, 8),
    kv_tokens=st.integers(0, 10_000),
    more=st.integers(1, 10_000),
)
def test_more_layers_or_more_tokens_never_take_less(
    start: int, length: int, kv_tokens: int, more: int
) -> None:
    config = config_of(16)
    plan = plan_stage(config, LayerRange(start, start + length), kv_tokens)
    assert plan_stage(config, LayerRange(start, start + length + 1), kv_tokens).total_bytes > plan.total_bytes
    assert plan_stage(config, LayerRange(start, start + length), kv_tokens + more).kv_bytes > plan.kv_bytes


def test_weights_are_counted_as_they_lie_in_memory() -> None:
    # Llama 3 8B has 8 030 261 248 parameters.
    whole = plan_stage(config_of(32), LayerRange(0, 32), kv_tokens=0)
    assert whole.weight_bytes == 4 * 8_030_261_248
    assert plan_stage(config_of(32), LayerRange(0, 32), 0, element_size=2).weight_bytes == 2 * 8_030_261_248


@pytest.mark.parametrize("tied", [False, True])
def test_ends_of_the_model_weigh_more_and_a_tied_matrix_is_held_once_per_stage(tied: bool) -> None:
    config = config_of(32, tied=tied)
    matrix = config.vocab_size * config.hidden_size * 4

    def weight(start: int, stop: int) -> int:
        return plan_stage(config, LayerRange(start, stop), 0).weight_bytes

    layer = weight(1, 2)
    assert weight(0, 1) == layer + matrix
    assert weight(31, 32) == layer + matrix + 4 * config.hidden_size
    assert weight(0, 32) == 32 * layer + (1 if tied else 2) * matrix + 4 * config.hidden_size


# Everything a node process imports, so that its runtime is measured too; then the largest batch the engine makes, with a
# context that fills the KV budget.
_MEASURED = """
import json, sys
from pathlib import Path

import grpc.aio, libtorrent, numpy as np, psutil, torch
import node.daemon
from mesh.layers import LayerRange
from mesh.model.llama import StageStep
from mesh.model.loader import load_stage
from mesh.model.sampling import SamplingParams, sample
from mesh.weights.releases.release import Release
from mesh.weights.trust.signing import TrustRoot
from tests.support.peak_memory import peak_rss_bytes

directory, trust, text, kv_tokens = sys.argv[1:]
torch.set_num_threads(1)
release, layers = Release.open(Path(directory), TrustRoot.load(Path(trust))), LayerRange.parse(text)
process = psutil.Process()
before = process.memory_info().rss
stage = load_stage(
    release.manifest.config, layers, {ref: release.shard_path(ref) for ref in release.manifest.shards_for(layers)}
)
loaded = process.memory_info().rss
width, tokens = release.manifest.config.hidden_size, int(kv_tokens) // 4
caches = [stage.new_cache(tokens) for _ in range(4)]
for start in range(0, tokens, 128):
    steps = []
    for cache in caches:
        rows = min(128, tokens - start)
        ids = torch.zeros(rows, dtype=torch.int64) if stage.is_first else None
        hidden = None if stage.is_first else torch.randn(rows, width)
        steps.append(StageStep(cache, start, ids, hidden, True))
    stage.run(steps)
peak = peak_rss_bytes()
print(json.dumps({"before": before, "loaded": loaded, "peak": peak}))
"""


@pytest.mark.real_model
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status, which Linux alone has")
@pytest.mark.parametrize("layers", [LayerRange(0, 8), LayerRange(24, 30)], ids=str)
def test_real_process_stays_within_its_plan(real_release: PackedRelease, layers: LayerRange) -> None:
    kv_tokens = 4096
    plan = plan_stage(real_release.manifest.config, layers, kv_tokens)
    answer = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(real_release.directory), str(real_release.trust_file), str(layers), str(kv_tokens)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env={"OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    measured = json.loads(answer.stdout)
    assert measured["before"] <= plan.runtime_bytes
    assert measured["loaded"] - measured["before"] <= plan.weight_bytes + plan.workspace_bytes
    assert measured["peak"] <= plan.total_bytes
    # Nor is the plan so careful that a third of the machine lies idle.
    assert measured["peak"] >= plan.total_bytes * 2 // 3 - 100 * MIB
