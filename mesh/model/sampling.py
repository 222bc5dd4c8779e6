"""From logits to one token id.

The order of things: what a client adds to some logits, penalties for what was said before, then greedy, or temperature,
``top_k``, ``top_p`` and ``min_p`` (transformers' order) and a draw.

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
from mesh.model.penalties import TokenHistory, penalize_presence, penalize_repetition

Logits = np.ndarray[Any, np.dtype[np.float32]]  # [vocab_size]
Allowed = np.ndarray[Any, np.dtype[np.bool_]]  # [vocab_size]
_Ids = np.ndarray[Any, np.dtype[np.int64]]
_Weights = np.ndarray[Any, np.dtype[np.float64]]  # not normalised

MAX_BIASED_TOKENS = 1024
MAX_TOP_LOGPROBS = 20  # OpenAI's bound


@dataclass(frozen=True, slots=True)
class SamplingParams:
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0  # smallest set of tokens with at least this probability; 1 keeps all
    seed: int = 0  # unsigned 64-bit
    top_k: int = 0  # this many of the likeliest; 0 keeps all
    min_p: float = 0.0  # at least this share of the likeliest token's probability; 0 keeps all
    repetition_penalty: float = 1.0  # of every token of prompt and answer; 1 is none
    presence_penalty: float = 0.0  # of a token that the answer has; 0 is none
    frequency_penalty: float = 0.0  # for each time that the answer has it; 0 is none
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit)
    top_logprobs: int | None = (
        None  # tell how likely the token was, and so many likeliest; None: tell nothing
    )

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature {self.temperature}: expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p {self.top_p}: expected more than 0, at most 1")
        if not 0 <= self.seed < 1 << 64:
            raise UsageError(f"seed {self.seed}: expected an unsigned 64-bit integer")
        if not 0 <= self.top_k < 1 << 32:
            raise UsageError(f"top_k {self.top_k}: expected an unsigned 32-bit integer")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p {self.min_p}: expected 0 to 1")
        if not 0.01 <= self.repetition_penalty <= 100:  # further away float32 logits overflow
            raise UsageError(f"repetition_penalty {self.repetition_penalty}: expected 0.01 to 100")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(value := getattr(self, name)):
                raise UsageError(f"{name} {value}: expected a finite number")
        if len(self.logit_bias) > MAX_BIASED_TOKENS:
            raise UsageError(
                f"logit_bias of {len(self.logit_bias)} tokens: expected at most {MAX_BIASED_TOKENS}"
            )
        if len({token_id for token_id, _ in self.logit_bias}) != len(self.logit_bias):
            raise UsageError("logit_bias names a token twice")
        for token_id, bias in self.logit_bias:
            if not (0 <= token_id < 1 << 32 and math.isfinite(bias)):
                raise UsageError(
                    f"logit_bias {bias} of token {token_id}: expected a token id and a finite number"
                )
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS:
            raise UsageError(f"top_logprobs {self.top_logprobs}: expected 0 to {MAX_TOP_LOGPROBS}")

    @property
    def needs_history(self) -> bool:
        """Whether a draw depends on the tokens before it by more than the logits."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def sample(
    logits: Logits,
    params: SamplingParams,
    position: int,
    history: TokenHistory | None = None,
    allowed: Allowed | None = None,
) -> int:
    """Draw the token that will stand at ``position``. Of equal logits the lowest id comes first.

    ``history`` must hold every token before ``position`` if ``params.needs_history``; of ``allowed`` only those that are
    true are drawn. Raises Unhealthy if the logits are not numbers to choose from.
    """
    best = int(np.argmax(logits))  # a NaN, if there is one
    if not math.isfinite(logits[best]):
        raise Unhealthy(f"logit {logits[best]} of token {best} at position {position}: the model overflowed")
    if params.logit_bias or params.needs_history:
        logits = _adjusted(logits, params, position, history)
        best = int(np.argmax(logits))
    if allowed is not None:
        logits = np.where(allowed, logits, np.float32(-np.inf))
        best = int(np.argmax(logits))
        if not math.isfinite(logits[best]):
            raise Unhealthy(f"no token may stand at position {position}")
    if params.temperature == 0:
        return best
    # The largest becomes 0 before the division: no temperature, however small, makes it overflow.
    with np.errstate(over="ignore"):
        weights = np.exp((logits.astype(np.float64) - float(logits[best])) / params.temperature)
    ids = np.arange(len(weights))
    if allowed is not None:
        ids = np.flatnonzero(weights)  # rounding must not draw what has no weight
        weights = weights[ids]
    if 0 < params.top_k < len(weights):
        places = _largest(weights, params.top_k)
        ids, weights = ids[places], weights[places]
    if params.top_p < 1:
        ids, weights = _nucleus(ids, weights, params.top_p)
    if params.min_p > 0:
        likely = weights >= params.min_p * weights.max()
        ids, weights = ids[likely], weights[likely]
    cumulative = np.cumsum(weights)
    drawn = int(np.searchsorted(cumulative, _uniform(params.seed, position) * cumulative[-1], side="right"))
    return int(ids[min(drawn, len(ids) - 1)])


def _adjusted(logits: Logits, params: SamplingParams, position: int, history: TokenHistory | None) -> Logits:
    """A copy with the client's bias and the penalties, in that order (as vLLM and llama.cpp)."""
    logits = logits.copy()
    for token_id, bias in params.logit_bias:
        if token_id < len(logits):
            logits[token_id] += np.float32(bias)
    if params.needs_history:
        assert history is not None, "a penalty needs the tokens that it is for"
        if params.repetition_penalty != 1:
            penalize_repetition(logits, history.ids_before(position), params.repetition_penalty)
        if params.presence_penalty or params.frequency_penalty:
            answer = history.answer_before(position)
            penalize_presence(logits, answer, params.presence_penalty, params.frequency_penalty)
    return logits


def _largest(weights: _Weights, count: int) -> _Ids:
    """Places of the ``count`` largest, of equals the lowest ids, likeliest first."""
    least = np.partition(weights, len(weights) - count)[len(weights) - count]
    places = np.flatnonzero(weights >= least)
    return places[np.argsort(-weights[places], kind="stable")][:count]


def _nucleus(ids: _Ids, weights: _Weights, top_p: float) -> tuple[_Ids, _Weights]:
    """The fewest tokens that have ``top_p`` of the probability, likeliest first (Holtzman et al. 2020)."""
    total = float(weights.sum())
    # Tokens below the average of what may go cannot add up to it, so all of them are outside: most of a vocabulary
    # need not be sorted.
    places = np.flatnonzero(weights > (1 - top_p) * total / len(weights))
    # Equals stay in the order of their ids, on every machine.
    places = places[np.argsort(-weights[places], kind="stable")]
    cumulative = np.cumsum(weights[places])
    places = places[: 1 + int(np.searchsorted(cumulative, top_p * total, side="left"))]
    return ids[places], weights[places]


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits."""
    generator = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64), counter=position)
    return int(generator.random_raw() >> 11) * 2.0**-53
