"""Penalties for tokens that were there before, and the memory they need.

Pure numpy: logits are changed in place. ``repetition_penalty`` counts prompt and answer, as in transformers (Keskar et
al. 2019); presence and frequency count the answer alone, as in vLLM. Knows nothing of sessions or seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_Logits = np.ndarray[Any, np.dtype[np.float32]]  # [vocab_size]
_Ids = np.ndarray[Any, np.dtype[np.int64]]


class TokenHistory:
    """The tokens of one sequence by position, so that a step computed again sees what it saw the first time."""

    def __init__(self, ids: Sequence[int], prompt_tokens: int, max_tokens: int) -> None:
        """``ids`` stand at the first positions; the first ``prompt_tokens`` of them are no answer."""
        assert prompt_tokens <= len(ids) <= max_tokens
        self._ids = np.empty(max_tokens, dtype=np.int64)
        self._ids[: len(ids)] = ids
        self._filled, self._prompt_tokens = len(ids), prompt_tokens

    def put(self, position: int, token_id: int) -> None:
        """The token drawn for ``position``; what stood there and after it is forgotten."""
        assert position <= self._filled, "a gap in the history"
        if position < len(self._ids):  # a token drawn for the place after the last one is never fed back
            self._ids[position] = token_id
            self._filled = position + 1

    def ids_before(self, position: int) -> _Ids:
        """Prompt and answer."""
        assert position <= self._filled, "a gap in the history"
        return self._ids[:position]

    def answer_before(self, position: int) -> _Ids:
        return self.ids_before(position)[self._prompt_tokens :]


def penalize_repetition(logits: _Logits, ids: _Ids, penalty: float) -> None:
    """Divide positive logits of ``ids`` by the penalty, multiply negative ones, however often the token was there."""
    seen = np.unique(ids)
    values = logits[seen]
    logits[seen] = np.where(values < 0, values * np.float32(penalty), values / np.float32(penalty))


def penalize_presence(logits: _Logits, ids: _Ids, presence: float, frequency: float) -> None:
    """OpenAI's formula: less ``presence`` for each token of ``ids``, less ``frequency`` for each time it is there."""
    seen, counts = np.unique(ids, return_counts=True)
    logits[seen] -= (presence + frequency * counts).astype(np.float32)
