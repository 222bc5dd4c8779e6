"""Which of the waiting steps the engine computes next: a pure choice over values.

Decode steps go first, so that a long prompt never stalls somebody else's next token; prefill chunks fill what is left of
the token budget, oldest first. A session contributes at most its oldest step: its steps must be computed in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from mesh.model.memory import MAX_BATCH_ROWS


class Waiting(Protocol):
    @property
    def session(self) -> str: ...

    @property
    def num_tokens(self) -> int: ...


W = TypeVar("W", bound=Waiting)


def choose_batch(queue: Sequence[W], max_tokens: int = MAX_BATCH_ROWS) -> list[W]:
    """The steps to compute together; never empty if the queue is not.

    ``queue`` is in order of arrival. A step larger than the budget is computed alone rather than never.
    """
    heads: dict[str, W] = {}
    for waiting in queue:
        heads.setdefault(waiting.session, waiting)
    batch: list[W] = []
    room = max_tokens
    for waiting in sorted(
        heads.values(), key=lambda w: w.num_tokens > 1
    ):  # stable: arrival order within each kind
        if waiting.num_tokens <= room or not batch:
            batch.append(waiting)
            room -= waiting.num_tokens
    return batch
