"""The choice between shards and their twins, as arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.swarm.encoding_choice import Encoding, Sizes, choose_encoding

GB = 10**9
BF16 = [Sizes(GB, 665 * 10**6)] * 10  # ten layers
QUANTISED = [Sizes(GB, 970 * 10**6)] * 10
speeds = st.floats(1e3, 1e11)
sizes = st.lists(st.builds(lambda raw, part: Sizes(raw, max(1, int(raw * part))), st.integers(1, GB), st.floats(0.1, 1)), min_size=1, max_size=5)  # fmt: skip


@pytest.mark.parametrize(
    ("link", "decode", "shards", "chosen"),
    [
        (12.5e6, 500e6, BF16, Encoding.ZSTD),  # 100 Mbit/s: a third of the time saved
        (125e6, 500e6, BF16, Encoding.ZSTD),  # 1 Gbit/s: decoding hides behind the transfer
        (1.25e9, 500e6, BF16, Encoding.RAW),  # 10 Gbit/s: the processor is slower than the link
        (250e6, 500e6, BF16[:1], Encoding.RAW),  # a single layer hides behind nothing
        (125e6, 8e9, BF16[:1], Encoding.ZSTD),
        (12.5e6, 500e6, QUANTISED, Encoding.RAW),  # 3 % is not worth the disk
        (12.5e6, 500e6, [], Encoding.RAW),
    ],
)
def test_twins_win_when_they_are_sooner_usable(
    link: float, decode: float, shards: list[Sizes], chosen: Encoding
) -> None:
    assert choose_encoding(link, decode, shards) is chosen


@given(speeds, speeds, sizes)
def test_slower_link_never_speaks_against_twins(link: float, decode: float, shards: list[Sizes]) -> None:
    if choose_encoding(link, decode, shards) is Encoding.ZSTD:
        assert choose_encoding(link / 2, decode, shards) is Encoding.ZSTD


@given(speeds, speeds, sizes)
def test_faster_decoder_never_speaks_against_twins(link: float, decode: float, shards: list[Sizes]) -> None:
    if choose_encoding(link, decode, shards) is Encoding.ZSTD:
        assert choose_encoding(link, decode * 2, shards) is Encoding.ZSTD
