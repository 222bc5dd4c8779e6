"""Quotas: an average that is kept and a burst that is allowed; a refusal changes nothing."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from coordinator.access.api_keys import Limits
from coordinator.access.quotas import MINUTE, Bucket, Meter

takes = st.lists(st.tuples(st.integers(1, 40), st.floats(0, 30)), max_size=60)


@given(st.integers(1, 30), takes)
def test_no_span_of_time_lets_more_through_than_a_burst_and_the_average(
    capacity: int, steps: list[tuple[int, float]]
) -> None:
    bucket, now, taken = Bucket(capacity, 0.0), 0.0, 0
    for amount, pause in steps:
        now += pause
        if bucket.wait_seconds(amount, now) == 0:
            bucket.take(amount, now)
            taken += amount
        assert taken <= capacity + capacity * now / MINUTE + 1e-6


@given(st.integers(1, 30), takes)
def test_after_the_seconds_that_are_told_asking_again_succeeds(
    capacity: int, steps: list[tuple[int, float]]
) -> None:
    bucket, now = Bucket(capacity, 0.0), 0.0
    for amount, pause in steps:
        now += pause
        wait = bucket.wait_seconds(amount, now)
        assert math.isinf(wait) == (amount > capacity)
        if math.isfinite(wait):
            now += wait + 1e-6
            assert bucket.wait_seconds(amount, now) == 0
            bucket.take(amount, now)


def test_a_refused_request_takes_nothing() -> None:
    meter = Meter(Limits(requests_per_minute=2, tokens_per_minute=10, streams=1), 0.0)
    assert meter.begin_request(0.0, is_stream=True) is None
    refused = meter.begin_request(0.0, is_stream=True)
    assert refused is not None
    assert (refused.what, refused.limit) == ("streams at the same time", 1)
    assert meter.levels(0.0)["requests"].remaining == 1
    assert meter.streams == 1
    meter.end_stream()
    assert meter.begin_request(0.0, is_stream=True) is None
    refused = meter.begin_request(0.0, is_stream=False)
    assert refused is not None
    assert refused.retry_seconds == MINUTE / 2


def test_tokens_that_were_not_used_are_given_back() -> None:
    meter = Meter(Limits(tokens_per_minute=100), 0.0)
    assert meter.take_tokens(80, 0.0) is None
    assert meter.take_tokens(80, 0.0) is not None
    meter.give_back_tokens(70, 0.0)
    assert meter.levels(0.0)["tokens"].remaining == 90
    assert math.isinf(meter.take_tokens(101, 0.0).retry_seconds)  # type: ignore[union-attr]


def test_a_key_without_limits_has_none_to_tell() -> None:
    meter = Meter(Limits(), 0.0)
    assert meter.begin_request(0.0, is_stream=True) is None
    assert meter.take_tokens(10**9, 0.0) is None
    assert meter.levels(0.0) == {}
