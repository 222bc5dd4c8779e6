"""How a prompt is cut into steps; the same everywhere, because the cut decides how sums are rounded."""

from __future__ import annotations

from collections.abc import Iterator

# Tokens: enough rows for full matrix products, few enough that the chunks of a prompt overlap along a route.
PREFILL_CHUNK = 128


def prefill_chunks(num_tokens: int) -> Iterator[range]:
    """Consecutive position ranges that cover ``[0, num_tokens)``."""
    for start in range(0, num_tokens, PREFILL_CHUNK):
        yield range(start, min(start + PREFILL_CHUNK, num_tokens))
