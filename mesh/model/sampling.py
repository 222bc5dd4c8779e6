"""From logits to one token id.

The random number of a draw is a pure function of (seed, position): a counter-based generator (Philox 4x64-10, Salmon et
al. 2011) keyed by the seed, with the position as its counter. A step that is computed again, on another machine or in
another order, draws the same token. The raw 64-bit output is used, which NumPy keeps stable across versions and
platforms, unlike its distributions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mesh.errors import Unhealthy, UsageError

Logits = np.ndarray[Any, np.dtype[np.float32]]  # [vocab_size]
_Ids = np.ndarray[Any, np.dtype[np.int64]]
_Weights = np.ndarray[Any, np.dtype[np.float64]]  # not normalised


@dataclass(frozen=True, slots=True)
class SamplingParams:
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0  # smallest set of tokens with at least this probability; 1 keeps all
    seed: int = 0  # unsigned 64-bit

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature {self.temperature}: expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p {self.top_p}: expected more than 0, at most 1")
        if not 0 <= self.seed < 1 << 64:
            raise UsageError(f"seed {self.seed}: expected an unsigned 64-bit integer")


def sample(logits: Logits, params: SamplingParams, position: int) -> int:
    """Draw the token that will stand at ``position``. Of equal logits the lowest id comes first.

    Raises Unhealthy if the logits are not numbers to choose from.
    """
    best = int(np.argmax(logits))  # a NaN, if there is one
    if not math.isfinite(logits[best]):
        raise Unhealthy(f"logit {logits[best]} of token {best} at position {position}: the model overflowed")
    if params.temperature == 0:
        return best
    # The largest becomes 0 before the division: no temperature, however small, makes it overflow.
    with np.errstate(over="ignore"):
        weights = np.exp((logits.astype(np.float64) - float(logits[best])) / params.temperature)
    ids, weights = _nucleus(weights, params.top_p)
    cumulative = np.cumsum(weights)
    drawn = int(np.searchsorted(cumulative, _uniform(params.seed, position) * cumulative[-1], side="right"))
    return int(ids[min(drawn, len(ids) - 1)])


def _nucleus(weights: _Weights, top_p: float) -> tuple[_Ids, _Weights]:
    """The fewest tokens that have ``top_p`` of the probability, likeliest first (Holtzman et al. 2020)."""
    ids = np.arange(len(weights))
    if top_p == 1:
        return ids, weights
    total = float(weights.sum())
    # Tokens below the average of what may go cannot add up to it, so all of them are outside: most of a vocabulary
    # need not be sorted.
    ids = np.flatnonzero(weights > (1 - top_p) * total / len(weights))
    ids = ids[
        np.argsort(-weights[ids], kind="stable")
    ]  # equals stay in the order of their ids, on every machine
    cumulative = np.cumsum(weights[ids])
    ids = ids[: 1 + int(np.searchsorted(cumulative, top_p * total, side="left"))]
    return ids, weights[ids]


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits."""
    generator = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64), counter=position)
    return int(generator.random_raw() >> 11) * 2.0**-53
