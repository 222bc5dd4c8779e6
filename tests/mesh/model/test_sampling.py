"""One token from logits: greedy, or drawn from the nucleus by a number that depends on seed and position alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mesh.errors import Unhealthy, UsageError
from mesh.model.sampling import SamplingParams, sample

MAX_SEED = 2**64 - 1
logits_rows = hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-50, 50, width=32))


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    weights = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    return weights / weights.sum()


@given(logits=logits_rows, position=st.integers(0, 2**24), seed=st.integers(0, MAX_SEED))
def test_greedy_takes_the_first_of_the_best(logits: np.ndarray, position: int, seed: int) -> None:
    token = sample(logits, SamplingParams(seed=seed), position)
    assert token == min(np.flatnonzero(logits == logits.max()))


def test_equal_logits_are_a_tie_that_the_lowest_id_wins() -> None:
    assert sample(np.array([1, 3, 3, 2, 3], dtype=np.float32), SamplingParams(), 0) == 1
    # Also among equals at the nucleus' edge: a tiny top_p keeps one token only.
    assert sample(np.zeros(5, dtype=np.float32), SamplingParams(temperature=1, top_p=1e-9), 0) == 0


def test_draws_do_not_depend_on_the_order_in_which_they_are_made() -> None:
    logits = np.random.default_rng(0).standard_normal((40, 200)).astype(np.float32)
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=42)
    forward = [sample(row, params, position) for position, row in enumerate(logits)]
    order = list(range(40))
    random.Random(1).shuffle(order)
    replayed = {position: sample(logits[position], params, position) for position in order + order}
    assert [replayed[position] for position in range(40)] == forward
    assert len(set(forward)) > 20


@given(
    seed=st.one_of(st.integers(0, MAX_SEED), st.sampled_from([0, 1, 2**32, 2**63 - 1, 2**63, MAX_SEED])),
    position=st.integers(0, 2**40),
)
def test_every_unsigned_64_bit_seed_draws(seed: int, position: int) -> None:
    assert 0 <= sample(np.zeros(100, dtype=np.float32), SamplingParams(1.0, 1.0, seed), position) < 100


def test_seed_and_position_are_used_to_their_last_bit() -> None:
    uniform = np.zeros(1 << 16, dtype=np.float32)
    seeds = [0, *(1 << bit for bit in range(64))]
    assert len({sample(uniform, SamplingParams(1.0, 1.0, seed), 5) for seed in seeds}) > 60
    assert len({sample(uniform, SamplingParams(1.0, 1.0, 9), 1 << bit) for bit in range(24)}) > 22


def test_known_draws_never_change() -> None:
    # Golden: a session that moves to another version or machine must go on with the very tokens it would have had.
    logits = np.linspace(-2, 2, 1000, dtype=np.float32)
    draws = [
        sample(logits, SamplingParams(temperature=0.7, top_p=0.95, seed=seed), position)
        for seed, position in [(0, 0), (0, 1), (1, 0), (MAX_SEED, 100_000)]
    ]
    assert draws == [998, 887, 940, 846]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.7, 1.0), (1.0, 0.7)])
def test_draws_follow_the_distribution(temperature: float, top_p: float) -> None:
    logits = np.array([2.0, 1.5, 0.0, -0.5, 1.0, 0.2, -3.0, 0.9], dtype=np.float32)
    draws = 4000
    params = SamplingParams(temperature, top_p, seed=123)
    counts = np.bincount([sample(logits, params, position) for position in range(draws)], minlength=8)
    expected = probabilities(logits, temperature)
    kept = nucleus(expected, top_p)
    expected = np.where(kept, expected, 0) / expected[kept].sum() * draws
    assert counts[~kept].sum() == 0
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert (
        chi_square < 24.3
    )  # the 0.1 % quantile of 7 degrees of freedom; the seed is fixed, so this never flickers


def nucleus(probability: np.ndarray, top_p: float) -> np.ndarray:
    """Which tokens the definition keeps: most likely first, until they have top_p together."""
    kept = np.zeros(len(probability), dtype=bool)
    for token in np.argsort(-probability, kind="stable"):
        kept[token] = True
        if probability[kept].sum() >= top_p:
            break
    return kept


@given(
    logits=hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(-8, 8, width=16), unique=True),
    top_p=st.floats(0.01, 1.0),
    temperature=st.floats(0.1, 3.0),
    position=st.integers(0, 10_000),
)
def test_nothing_outside_the_nucleus_is_drawn(
    logits: np.ndarray, top_p: float, temperature: float, position: int
) -> None:
    token = sample(logits, SamplingParams(temperature, top_p, seed=7), position)
    # The edge itself may round either way: the definition's sum and ours add in different orders.
    assert nucleus(probabilities(logits, temperature), min(1.0, top_p + 1e-9))[token]


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    logits = np.array([1e4, -1e4, 9e3], dtype=np.float32)
    assert sample(logits, SamplingParams(temperature, 1.0, 3), 0) in (0, 1, 2)
    assert temperature > 1 or sample(logits, SamplingParams(temperature, 1.0, 3), 0) == 0


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(1.0, 0.9)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_overflowed_are_never_drawn_from(params: SamplingParams, bad: float) -> None:
    with pytest.raises(Unhealthy, match="of token 2 at position 5"):
        sample(np.array([1.0, 2.0, bad, 3.0], dtype=np.float32), params, 5)


def test_minus_infinity_rules_a_token_out() -> None:
    logits = np.array([0.0, -np.inf, 0.0], dtype=np.float32)
    assert {sample(logits, SamplingParams(5.0), position) for position in range(100)} == {0, 2}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"top_p": float("nan")}, "top_p nan"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**64}, f"seed {2**64}"),
    ],
)
def test_parameters_out_of_range_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SamplingParams(**fields)  # type: ignore[arg-type]
