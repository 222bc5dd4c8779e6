"""Answers that must not end too soon: masks without the tokens that end them. Pure."""

from __future__ import annotations

from collections.abc import Collection

from coordinator.token_pipeline import MaskSource, TokenMasks


class LeastTokens:
    """``least`` tokens before one of ``end_ids``, of what ``grammar`` allows."""

    def __init__(
        self, least: int, end_ids: Collection[int], vocab_size: int, grammar: MaskSource | None
    ) -> None:
        self._least, self._grammar = least, grammar
        num_bytes = (vocab_size + 31) // 32 * 4
        every = (1 << vocab_size) - 1
        self._every = every.to_bytes(num_bytes, "little")
        self._ends = sum(1 << token_id for token_id in set(end_ids))

    def masks(self) -> TokenMasks:
        inner = None if self._grammar is None else self._grammar.masks()
        return _Masks(self._least, self._every, self._ends, inner)


class _Masks:
    def __init__(self, left: int, every: bytes, ends: int, inner: TokenMasks | None) -> None:
        self._left, self._every, self._ends, self._inner = left, every, ends, inner

    def accept(self, token_id: int) -> None:
        self._left -= 1
        if self._inner is not None:
            self._inner.accept(token_id)

    async def next(self) -> bytes:
        mask = self._every if self._inner is None else await self._inner.next()
        if self._left <= 0:
            return mask
        longer = int.from_bytes(mask, "little") & ~self._ends
        # Where the grammar has nothing else to say, its end is the answer's.
        return longer.to_bytes(len(mask), "little") if longer else mask
