"""The native stage: LLaMA as the torch stage has it, and the same bits in any batch, chunk, cut, team or instruction set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.architecture import LlamaConfig, RopeConfig
from mesh.layers import LayerRange
from mesh.model.kv_cache import KvCache, StepRefused
from mesh.model.llama import Stage, StageStep
from mesh.model.native import library
from mesh.model.native_stage import NativeStage
from tests.support.native_shards import make_shards, torch_stage

pytestmark = pytest.mark.skipif(not library.is_available(), reason="the native library is not built")

LLAMA3 = RopeConfig(kind="llama3", factor=8.0, original_context_length=64)


def config_of(
    *, hidden: int = 256, head_dim: int = 16, tied: bool = False, rope: RopeConfig | None = None
) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=head_dim,
        vocab_size=300,
        context_length=512,
        rms_norm_eps=1e-5,
        rope=rope or RopeConfig(),
        tied=tied,
        bos_token_id=None,
        eos_token_ids=(),
    )


def mixed(name: str) -> str:
    """A type for each matrix, so that one model has most of them."""
    kinds = {
        "embed_tokens": "Q8_0", "q_proj": "Q4_0", "k_proj": "F16", "v_proj": "Q6_K", "o_proj": "F32",
        "gate_proj": "Q4_K", "up_proj": "Q4_1", "down_proj": "Q6_K", "lm_head": "BF16",
    }  # fmt: skip
    kind = kinds[name.split(".")[-2]]
    return "F32" if kind.endswith("_K") and "o_proj" in name else kind


WHOLE = LayerRange(0, 4)
MIXED = config_of(head_dim=64)


@cache
def mixed_stage(layers: LayerRange, threads: int, isa: str) -> NativeStage:
    return NativeStage(MIXED, layers, make_shards(MIXED, layers, mixed), threads=threads, isa=isa)


def isas() -> list[str]:
    return list(library.ISAS[: library.ISAS.index(library.best_isa()) + 1])


def tokens_of(seed: int, count: int) -> torch.Tensor:
    return torch.randint(0, MIXED.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


def through(
    stages: Sequence[NativeStage | Stage],
    caches: Sequence[Sequence[KvCache]],
    chunks: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """One batch of steps, a chunk of each session, down the pipe: the logits of each chunk's last token."""
    rows: list[torch.Tensor | None] = [None] * len(chunks)
    for stage, held in zip(stages, caches, strict=True):
        steps = [
            StageStep(cache, cache.position, ids if row is None else None, row, True)
            for cache, ids, row in zip(held, chunks, rows, strict=True)
        ]
        rows = list(stage.run(steps))
    return [row for row in rows if row is not None]


def whole_prompt(stage: NativeStage | Stage, ids: torch.Tensor) -> torch.Tensor:
    [logits] = through([stage], [[stage.new_cache(len(ids))]], [ids])
    return logits


@pytest.mark.parametrize("type_", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(
    "config",
    [config_of(), config_of(tied=True, rope=LLAMA3), config_of(hidden=44, head_dim=12)],
    ids=["plain", "tied-llama3", "odd-sizes"],
)
def test_plain_weights_give_the_torch_stages_logits(config: LlamaConfig, type_: str) -> None:
    shards = make_shards(config, WHOLE, lambda _: type_)
    ids = tokens_of(1, 70)
    ours = whole_prompt(NativeStage(config, WHOLE, shards, threads=1), ids)
    torch.testing.assert_close(
        ours, whole_prompt(torch_stage(config, WHOLE, shards), ids), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("type_", [type_ for type_ in library.TYPES if type_.startswith("Q")])
def test_quantised_weights_give_nearly_the_torch_stages_logits(type_: str) -> None:
    config = config_of(head_dim=64)
    shards = make_shards(config, WHOLE, lambda _: type_)
    ids = tokens_of(2, 40)
    ours = whole_prompt(NativeStage(config, WHOLE, shards, threads=1), ids)
    theirs = whole_prompt(torch_stage(config, WHOLE, shards), ids)
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.99


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_session_has_the_same_bits_in_any_batch_chunking_cut_team_and_instruction_set(
    data: st.DataObject,
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=6), label="session lengths")
    prompts = [tokens_of(100 + index, length) for index, length in enumerate(lengths)]
    cut = data.draw(st.integers(1, 4), label="cut")
    ranges = [LayerRange(0, cut), LayerRange(cut, 4)] if cut < 4 else [WHOLE]
    stages = [
        mixed_stage(
            layers,
            data.draw(st.sampled_from([1, 2]), label="threads"),
            data.draw(st.sampled_from(isas()), label="isa"),
        )
        for layers in ranges
    ]
    caches = [[stage.new_cache(length) for stage in stages] for length in lengths]
    last: list[torch.Tensor | None] = [None] * len(prompts)
    while waiting := [i for i, held in enumerate(caches) if held[0].position < lengths[i]]:
        chosen = data.draw(
            st.lists(st.sampled_from(waiting), min_size=1, max_size=len(waiting), unique=True), label="batch"
        )
        chunks = []
        for i in chosen:
            start = caches[i][0].position
            count = data.draw(st.integers(1, lengths[i] - start), label="chunk")
            chunks.append(prompts[i][start : start + count])
        by_stage = [[caches[i][place] for i in chosen] for place in range(len(stages))]
        for i, logits in zip(chosen, through(stages, by_stage, chunks), strict=True):
            last[i] = logits
    for prompt, logits in zip(prompts, last, strict=True):
        assert logits is not None
        assert torch.equal(logits, whole_prompt(mixed_stage(WHOLE, 1, "scalar"), prompt))


def test_a_truncated_cache_continues_with_the_same_bits() -> None:
    stage, ids = mixed_stage(WHOLE, 1, library.best_isa()), tokens_of(3, 20)
    cache = stage.new_cache(40)
    through([stage], [[cache]], [tokens_of(4, 25)])
    cache.truncate(0)
    [logits] = through([stage], [[cache]], [ids])
    assert torch.equal(logits, whole_prompt(stage, ids))


def test_hidden_states_that_are_no_numbers_spoil_their_own_session_only() -> None:
    stage = mixed_stage(LayerRange(2, 4), 1, library.best_isa())
    hidden = torch.randn(3, MIXED.hidden_size, generator=torch.Generator().manual_seed(5))
    spoiled = hidden.clone()
    spoiled[1, 7] = float("nan")
    [alone] = stage.run([StageStep(stage.new_cache(3), 0, None, hidden, True)])
    sound, bad = stage.run([StageStep(stage.new_cache(3), 0, None, rows, True) for rows in (hidden, spoiled)])
    assert torch.equal(sound, alone)
    assert bad.isnan().all()


@pytest.mark.parametrize("ids", [[-1], [MIXED.vocab_size], [0, 1 << 40]])
def test_a_token_id_outside_the_vocabulary_is_refused(ids: list[int]) -> None:
    stage = mixed_stage(WHOLE, 1, library.best_isa())
    cache = stage.new_cache(4)
    with pytest.raises(StepRefused, match="token ids"):
        stage.run([StageStep(cache, 0, torch.tensor(ids), None, True)])
    assert cache.position == 0


def test_logits_come_only_where_a_step_samples() -> None:
    stage = mixed_stage(WHOLE, 1, library.best_isa())
    quiet, loud = stage.run(
        [StageStep(stage.new_cache(4), 0, tokens_of(6, 4), None, sample) for sample in (False, True)]
    )
    assert quiet.shape == (0,)
    assert torch.equal(loud, whole_prompt(stage, tokens_of(6, 4)))


def test_logits_of_rows_given_back_are_the_bits_that_sampling_sees() -> None:
    """Scoring a prompt asks for all rows and then for their logits, in pieces of any size."""
    stage, ids = mixed_stage(WHOLE, 1, "scalar"), tokens_of(5, 9)
    drawn = []
    cache = stage.new_cache(16)
    for position in range(len(ids)):
        [logits] = stage.run([StageStep(cache, position, ids[position : position + 1], None, True)])
        drawn.append(logits)
    [rows] = stage.run([StageStep(stage.new_cache(16), 0, ids, None, True, all_rows=True)])
    assert rows.shape == (len(ids), MIXED.hidden_size)
    assert torch.equal(stage.logits(rows), torch.stack(drawn))
    assert torch.equal(torch.cat([stage.logits(rows[:4]), stage.logits(rows[4:])]), torch.stack(drawn))
