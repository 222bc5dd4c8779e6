"""Log-probabilities of tokens, as the model gave them: before temperature, bias and penalties.

That is what evaluations need, and what vLLM tells by default. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_Rows = np.ndarray[Any, np.dtype[np.float32]]  # [T, vocab_size]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely a token was, and which were likeliest in its place."""

    logprob: float
    top: tuple[
        tuple[int, float], ...
    ]  # (token id, log-probability), likeliest first, of equals the lowest id


def token_logprobs(logits: _Rows, ids: Sequence[int], top: int) -> list[TokenLogprobs]:
    """Of each row's token, with the ``top`` likeliest of that row."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return [
        TokenLogprobs(float(row[token_id]), _likeliest(row, top))
        for row, token_id in zip(rows, ids, strict=True)
    ]


def _likeliest(row: np.ndarray[Any, np.dtype[np.float64]], count: int) -> tuple[tuple[int, float], ...]:
    count = min(count, len(row))
    if count == 0:
        return ()
    least = np.partition(row, len(row) - count)[len(row) - count]
    ids = np.flatnonzero(row >= least)
    ids = ids[np.argsort(-row[ids], kind="stable")][:count]
    return tuple((int(token_id), float(row[token_id])) for token_id in ids)
