"""An answer does not end before its least number of tokens, whatever its grammar allows, and always may after it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coordinator.api import create_app
from coordinator.least_tokens import LeastTokens
from coordinator.pipeline import Pipeline
from tests.support.api_client import chat, client_of
from tests.support.served_model import EOS, health, served_model
from tests.support.stage_servers import serve_cut


class Fixed:
    """A grammar that always allows the same tokens."""

    def __init__(self, allowed: Sequence[int], num_bytes: int) -> None:
        self.mask = sum(1 << token_id for token_id in set(allowed)).to_bytes(num_bytes, "little")
        self.accepted: list[int] = []

    def masks(self) -> Fixed:
        return self

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)

    async def next(self) -> bytes:
        return self.mask


def allowed(mask: bytes) -> set[int]:
    bits = int.from_bytes(mask, "little")
    return {token_id for token_id in range(len(mask) * 8) if bits >> token_id & 1}


async def test_without_a_grammar_everything_but_the_ends_may_come_first() -> None:
    masks = LeastTokens(2, [256, 258], 300, None).masks()
    for _ in range(2):
        mask = await masks.next()
        assert len(mask) == 40  # whole words
        assert allowed(mask) == set(range(300)) - {256, 258}
        masks.accept(1)
    assert allowed(await masks.next()) == set(range(300))


@given(st.lists(st.integers(0, 63), min_size=1), st.lists(st.integers(0, 63)), st.integers(1, 3))
def test_of_what_a_grammar_allows_the_ends_come_later_unless_there_is_nothing_else(
    said: list[int], ends: list[int], least: int
) -> None:
    async def hold() -> None:
        grammar = Fixed(said, 8)
        masks = LeastTokens(least, ends, 64, grammar).masks()
        for _ in range(least):
            assert allowed(await masks.next()) == (set(said) - set(ends) or set(said))
            masks.accept(5)
        assert allowed(await masks.next()) == set(said)
        assert grammar.accepted == [5] * least

    asyncio.run(hold())


@pytest.mark.parametrize("least", [0, 7])
async def test_a_model_that_only_wants_to_end_has_to_go_on(least: int) -> None:
    torch.set_num_threads(1)
    async with serve_cut([2]) as (route, _):
        pipeline = Pipeline(lambda: route)
        model = served_model(pipeline, route=route)
        try:
            async with client_of(create_app({"tiny": model}, lambda: health(1, 1, 1, 1))) as client:
                wanted = chat(min_tokens=least, logit_bias={str(EOS): 100}, temperature=0)
                response = await client.post("/v1/chat/completions", json=wanted)
        finally:
            await pipeline.close()
    assert response.json()["usage"]["completion_tokens"] == least + 1  # the end token counts
    assert response.json()["choices"][0]["finish_reason"] == "stop"
