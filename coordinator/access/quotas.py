"""How much one key may take: requests and tokens per minute by token buckets, streams by counting.

A bucket holds a minute's worth and fills evenly, so that a burst is allowed and an average is kept. Tokens are taken
for the longest answer a request allows and what was not used is given back. No clock: ``now`` is monotonic seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from coordinator.access.api_keys import Limits

MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Level:
    """Where one limit stands, as rate-limit headers tell it."""

    limit: int
    remaining: int
    reset_seconds: float  # until it is full again


@dataclass(frozen=True, slots=True)
class Exceeded:
    """What ran out, and after how many seconds asking again can succeed; infinite if it never can."""

    what: str  # "requests per minute", …
    limit: int
    retry_seconds: float


class Bucket:
    """``capacity`` per minute; full at the beginning."""

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self._level, self._at = float(capacity), now

    def wait_seconds(self, amount: int, now: float) -> float:
        """Until ``amount`` can be taken: 0 now, infinity if it is more than the bucket ever holds."""
        if amount > self.capacity:
            return math.inf
        return max(0.0, amount - self._level_at(now)) * MINUTE / self.capacity

    def take(self, amount: int, now: float) -> None:
        """Whether it may be taken, ``wait_seconds`` says; what is put into words later may run into debt."""
        self._level, self._at = self._level_at(now) - amount, now

    def give_back(self, amount: int, now: float) -> None:
        self._level, self._at = min(float(self.capacity), self._level_at(now) + amount), now

    def level(self, now: float) -> Level:
        level = self._level_at(now)
        return Level(
            self.capacity, max(0, math.floor(level)), (self.capacity - level) * MINUTE / self.capacity
        )

    def _level_at(self, now: float) -> float:
        return min(float(self.capacity), self._level + max(0.0, now - self._at) * self.capacity / MINUTE)


class Meter:
    """What one key has taken. Every refusal leaves it as it was."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self._requests = _bucket(limits.requests_per_minute, now)
        self._tokens = _bucket(limits.tokens_per_minute, now)
        self.streams = 0
        self.kv_tokens = 0

    def begin_request(self, now: float, *, is_stream: bool) -> Exceeded | None:
        """Take a request, and a stream if it is one (``end_stream`` gives that back)."""
        most = self.limits.streams
        if is_stream and most is not None and self.streams >= most:
            return Exceeded("streams at the same time", most, 1.0)
        if self._requests is not None:
            if wait := self._requests.wait_seconds(1, now):
                return Exceeded("requests per minute", self._requests.capacity, wait)
            self._requests.take(1, now)
        self.streams += is_stream
        return None

    def end_stream(self) -> None:
        self.streams -= 1

    def take_tokens(self, amount: int, now: float) -> Exceeded | None:
        if self._tokens is not None:
            if wait := self._tokens.wait_seconds(amount, now):
                return Exceeded("tokens per minute", self._tokens.capacity, wait)
            self._tokens.take(amount, now)
        return None

    def give_back_tokens(self, amount: int, now: float) -> None:
        if self._tokens is not None:
            self._tokens.give_back(amount, now)

    def levels(self, now: float) -> dict[str, Level]:
        """By what OpenAI's headers call them: ``requests`` and ``tokens``, those that are limited."""
        buckets = {"requests": self._requests, "tokens": self._tokens}
        return {name: bucket.level(now) for name, bucket in buckets.items() if bucket is not None}

    def is_idle(self, now: float) -> bool:
        """Nothing would be lost by forgetting it."""
        full = all(level.reset_seconds <= 0 for level in self.levels(now).values())
        return full and self.streams == 0 and self.kv_tokens == 0


def _bucket(capacity: int | None, now: float) -> Bucket | None:
    return None if capacity is None else Bucket(capacity, now)
