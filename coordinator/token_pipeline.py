"""The seam between text and transport: token ids in, token ids out.

``generation.py`` speaks it from above, ``pipeline.py`` implements it over real links, tests over a script.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from coordinator.routing import Route
from mesh.errors import Temporary
from mesh.model.logprobs import TokenLogprobs
from mesh.model.sampling import SamplingParams


class PipelineLost(Temporary):
    """A stage was lost in the middle of an answer; tokens already given stay valid."""


class TokenMasks(Protocol):
    """Which tokens one answer may have next, given those it has."""

    def accept(self, token_id: int) -> None: ...

    async def next(self) -> bytes:
        """A bit for each token, lowest first. Raises MeshError if that cannot be said."""


class MaskSource(Protocol):
    def masks(self) -> TokenMasks:
        """For an answer from its beginning."""


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One sequence to continue."""

    request_id: str
    prompt_ids: tuple[int, ...]
    max_new_tokens: int  # 0 only if ``prompt_logprobs``
    sampling: SamplingParams
    prompt_logprobs: int | None = None  # tell how likely the prompt is, with so many likeliest at each place
    grammar: MaskSource | None = None  # draw only what its masks allow


# The way to go on after a stage was lost: called with the ids of nodes to avoid, returns once there is another route with
# room. Raises RequestRefused where waiting cannot help.
Reroute = Callable[[frozenset[str]], Awaitable[Route]]


class TokenSession(Protocol):
    @property
    def route(self) -> Route:
        """The route now: another one after a recovery."""

    @property
    def recoveries(self) -> int:
        """How often a stage was lost and replaced."""

    @property
    def prompt_logprobs(self) -> Sequence[TokenLogprobs]:
        """If asked for: of the prompt from its second token on; complete with the first token, or the end."""

    @property
    def logprobs(self) -> Sequence[TokenLogprobs]:
        """If ``sampling.top_logprobs``: one for each token given so far."""

    def tokens(self) -> AsyncIterator[int]:
        """Sampled ids, at most ``max_new_tokens``, end tokens included: the caller decides when to stop."""


class TokenPipeline(Protocol):
    def session(
        self, request: TokenRequest, route: Route | None = None, reroute: Reroute | None = None
    ) -> AbstractAsyncContextManager[TokenSession]:
        """Entering opens every stage of the route, the best one if none is given (KV cache reserved), or raises
        RequestRefused (503 with ``mesh_incomplete`` or ``no_capacity``); leaving closes every stage. A
        stage that is lost on the way is replaced if ``reroute`` says by whom; else, and where nobody can, PipelineLost
        is raised mid-stream."""
