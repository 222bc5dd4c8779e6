"""top_k, min_p, penalties, bias and log-probabilities, beside slow references and transformers' own processors."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from mesh.errors import Unhealthy, UsageError
from mesh.model.logprobs import token_logprobs
from mesh.model.penalties import TokenHistory
from mesh.model.sampling import SamplingParams, sample

VOCAB = 40
rows = st.integers(0, 2**32).map(
    lambda seed: (np.random.default_rng(seed).standard_normal(VOCAB) * 3).astype(np.float32)
)
ids = st.lists(st.integers(0, VOCAB - 1), max_size=30)


def history(prompt: list[int], answer: list[int]) -> TokenHistory:
    remembered = TokenHistory(prompt, len(prompt), len(prompt) + len(answer) + 1)
    for position, token_id in enumerate(answer, start=len(prompt)):
        remembered.put(position, token_id)
    return remembered


def drawn_ids(logits: np.ndarray, params: SamplingParams, count: int = 400) -> set[int]:
    """What can be drawn, nearly: every position draws anew."""
    return {sample(logits, params, position) for position in range(count)}


def processed(logits: np.ndarray, seen: list[int], *processors: hf.LogitsProcessor) -> np.ndarray:
    scores = torch.from_numpy(logits.copy())[None]
    for processor in processors:
        scores = processor(torch.tensor([seen], dtype=torch.int64), scores)
    return scores[0].numpy()


# -- filters


@given(
    logits=rows,
    top_k=st.integers(0, VOCAB + 5),
    top_p=st.sampled_from([0.3, 0.8, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    position=st.integers(0, 10_000),
)
def test_what_is_drawn_is_what_transformers_would_keep(
    logits: np.ndarray, top_k: int, top_p: float, min_p: float, temperature: float, position: int
) -> None:
    processors: list[hf.LogitsProcessor] = [hf.TemperatureLogitsWarper(temperature)]
    if top_k:
        processors.append(hf.TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(hf.TopPLogitsWarper(top_p))
    if min_p:
        processors.append(hf.MinPLogitsWarper(min_p))
    kept = np.flatnonzero(np.isfinite(processed(logits, [0], *processors)))
    params = SamplingParams(temperature, top_p, seed=1, top_k=top_k, min_p=min_p)
    assert sample(logits, params, position) in kept


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(1.0, top_k=3), {4, 3, 2}),
        (SamplingParams(1.0, top_k=1), {4}),
        (SamplingParams(1.0, top_k=99), {0, 1, 2, 3, 4}),
        (SamplingParams(1.0, min_p=0.5), {4, 3}),  # e^-0.5 = 0.61 of the likeliest, e^-1 = 0.37
        (SamplingParams(1.0, min_p=1.0), {4}),
        (SamplingParams(1.0, top_k=3, min_p=0.2), {4, 3, 2}),
    ],
)
def test_exactly_the_likeliest_are_drawn(params: SamplingParams, expected: set[int]) -> None:
    assert drawn_ids(np.array([-2, -1.5, -1, -0.5, 0], dtype=np.float32), params) == expected


def test_of_equals_at_the_edge_of_top_k_the_lowest_ids_stay() -> None:
    assert drawn_ids(np.zeros(6, dtype=np.float32), SamplingParams(1.0, top_k=2)) == {0, 1}


# -- penalties and bias: greedy shows the adjusted order


@given(logits=rows, prompt=ids.filter(bool), answer=ids, penalty=st.sampled_from([0.5, 1.1, 1.3, 2.0]))
def test_repetition_penalty_is_that_of_transformers(
    logits: np.ndarray, prompt: list[int], answer: list[int], penalty: float
) -> None:
    expected = processed(logits, prompt + answer, hf.RepetitionPenaltyLogitsProcessor(penalty))
    params = SamplingParams(repetition_penalty=penalty)
    drawn = sample(logits, params, len(prompt) + len(answer), history(prompt, answer))
    assert drawn == int(expected.argmax())


@given(
    logits=rows,
    prompt=ids,
    answer=ids,
    presence=st.sampled_from([-2.0, 0.0, 0.5, 2.0]),
    frequency=st.sampled_from([-1.0, 0.0, 0.3, 2.0]),
)
def test_presence_and_frequency_count_the_answer_alone(
    logits: np.ndarray, prompt: list[int], answer: list[int], presence: float, frequency: float
) -> None:
    expected = logits.copy()
    for token_id, count in Counter(answer).items():
        expected[token_id] -= np.float32(presence + frequency * count)
    params = SamplingParams(presence_penalty=presence, frequency_penalty=frequency)
    drawn = sample(logits, params, len(prompt) + len(answer), history(prompt, answer))
    assert drawn == int(expected.argmax())


def test_bias_forbids_forces_and_leaves_the_models_logits_alone() -> None:
    logits = np.array([0, 1, 2, 3], dtype=np.float32)
    before = logits.copy()
    assert sample(logits, SamplingParams(logit_bias=((3, -100.0),)), 0) == 2
    assert drawn_ids(logits, SamplingParams(1.0, logit_bias=((0, 100.0),))) == {0}
    assert np.array_equal(logits, before)


def test_a_step_computed_again_sees_the_history_of_the_first_time() -> None:
    params = SamplingParams(temperature=1.0, seed=3, repetition_penalty=1.5, frequency_penalty=0.5)
    logits = np.random.default_rng(0).standard_normal((30, VOCAB)).astype(np.float32)
    remembered = TokenHistory([1, 2, 3], 3, 40)

    def draw(position: int) -> int:
        token_id = sample(logits[position - 3], params, position, remembered)
        remembered.put(position, token_id)
        return token_id

    first = [draw(position) for position in range(3, 33)]
    assert [draw(position) for position in range(13, 33)] == first[10:]


# -- masks


@given(
    logits=rows,
    allowed=st.sets(st.integers(0, VOCAB - 1), min_size=1),
    top_k=st.sampled_from([0, 1, 5]),
    top_p=st.sampled_from([0.5, 1.0]),
    position=st.integers(0, 1000),
)
def test_only_what_a_mask_allows_is_drawn(
    logits: np.ndarray, allowed: set[int], top_k: int, top_p: float, position: int
) -> None:
    mask = np.isin(np.arange(VOCAB), list(allowed))
    biased = SamplingParams(1.0, top_p, top_k=top_k, logit_bias=((0, 100.0),))
    assert sample(logits, biased, position, allowed=mask) in allowed
    assert sample(logits, SamplingParams(), position, allowed=mask) == max(allowed, key=lambda i: logits[i])


def test_a_mask_that_allows_all_changes_no_draw_and_one_that_allows_none_is_unhealthy() -> None:
    logits = np.random.default_rng(0).standard_normal(VOCAB).astype(np.float32)
    params = SamplingParams(1.0, 0.9, seed=4)
    mask = np.ones(VOCAB, dtype=bool)
    for position in range(50):
        assert sample(logits, params, position, allowed=mask) == sample(logits, params, position)
    with pytest.raises(Unhealthy):
        sample(logits, params, 0, allowed=~mask)


# -- log-probabilities


@given(logits=rows, token_id=st.integers(0, VOCAB - 1), top=st.integers(0, 20))
def test_logprobs_are_those_of_torch(logits: np.ndarray, token_id: int, top: int) -> None:
    expected = torch.from_numpy(logits).double().log_softmax(-1)
    [told] = token_logprobs(logits[None], [token_id], top)
    assert told.logprob == pytest.approx(float(expected[token_id]), abs=1e-12)
    values, likeliest = expected.topk(top)
    assert [token for token, _ in told.top] == likeliest.tolist()
    assert [value for _, value in told.top] == pytest.approx(values.tolist(), abs=1e-12)


# -- values


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": -1},
        {"min_p": 1.1},
        {"min_p": float("nan")},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": float("inf")},
        {"logit_bias": ((-1, 0.0),)},
        {"logit_bias": ((1, float("nan")),)},
        {"logit_bias": ((1, 0.0), (1, 1.0))},
        {"logit_bias": tuple((token, 0.0) for token in range(1025))},
        {"top_logprobs": 21},
    ],
    ids=str,
)
def test_a_value_out_of_bounds_is_never_made(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SamplingParams(**fields)  # type: ignore[arg-type]
