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

from mesh.errors import UsageError

Logits = np.ndarray[Any, np.dtype[np.float32]]  # [vocab_size]


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
    """Draw the token that will stand at ``position``. Of equal logits the lowest id wins."""
    if params.temperature == 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / params.temperature
    # Most likely first; the stable sort keeps ids in order among equals, so every machine agrees.
    order = np.argsort(-scaled, kind="stable")
    weights = np.exp(scaled[order] - scaled[order[0]])
    cumulative = np.cumsum(weights)
    total = cumulative[-1]
    # The nucleus: tokens before which less than top_p of the probability has gone by (Holtzman et al. 2020).
    kept = 1 + int(np.searchsorted(cumulative[:-1], params.top_p * total, side="left"))
    threshold = _uniform(params.seed, position) * cumulative[kept - 1]
    return int(order[min(int(np.searchsorted(cumulative[:kept], threshold, side="right")), kept - 1)])


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits."""
    generator = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64), counter=position)
    return int(generator.random_raw() >> 11) * 2.0**-53
