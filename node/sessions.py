"""The sessions a node holds: what each has reserved, where it stands, who opened it.

Pure bookkeeping: no gRPC, no torch. A step is admitted only if it continues its session exactly; a refused step changes
nothing. A frame of an older epoch, or a step seen before, is dropped without complaint: after a route change such
stragglers are normal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mesh.errors import MeshError
from mesh.model.kv_cache import KvBudget, KvCache
from mesh.model.penalties import TokenHistory
from mesh.model.sampling import SamplingParams


class SessionRefused(MeshError):
    """No room for another session, or for one this long."""


class BadStep(MeshError):
    """A step that does not continue its session."""


@dataclass(frozen=True, slots=True)
class NextStage:
    """Where a session's hidden states go from here."""

    node_id: str
    target: str  # host:port
    incarnation: int


@dataclass(frozen=True, slots=True)
class PromptScoring:
    """A prompt whose tokens' log-probabilities are wanted."""

    prompt_ids: tuple[int, ...]
    top: int  # likeliest tokens to tell at each place

    def ids_after(self, position: int, num_tokens: int) -> tuple[int, ...]:
        """The tokens that the rows of a step are to score; none for the last row of the prompt."""
        return self.prompt_ids[position + 1 : position + 1 + num_tokens]


@dataclass(slots=True)
class MaskGate:
    """Where a draw and its mask wait for one another: they come by different ways, in any order.

    At most one of each is held. ``work`` is anything; what comes out of a method is ready to be computed.
    """

    _mask: tuple[int, bytes] | None = None  # position, bits
    _work: tuple[int, Any] | None = None  # position, what waits

    def on_work(self, position: int, work: Any) -> tuple[Any, bytes] | None:
        self._work = (position, work)
        return self._meet()

    def on_mask(self, position: int, mask: bytes) -> tuple[Any, bytes] | None:
        self._mask = (position, mask)
        return self._meet()

    def drop(self) -> Any | None:
        """What waits, if anything does, waits no more."""
        waiting, self._work = self._work, None
        return None if waiting is None else waiting[1]

    def _meet(self) -> tuple[Any, bytes] | None:
        if self._mask is None or self._work is None or self._mask[0] != self._work[0]:
            return None
        work, mask, self._mask, self._work = self._work[1], self._mask[1], None, None
        return work, mask


@dataclass(slots=True)
class Session:
    id: str
    epoch: int
    request_id: str
    max_tokens: int
    cache: KvCache
    sampling: SamplingParams
    return_logits: bool
    next_stage: NextStage | None  # None on the last stage
    owner: Any  # the link that opened it: failures are reported there, and it dies with it
    history: TokenHistory | None = None  # on a last stage that has to penalise tokens
    gate: MaskGate | None = None  # on a last stage that may draw only what the coordinator's masks allow
    scoring: PromptScoring | None = None  # on a last stage that has to tell how likely the prompt is
    next_position: int = 0
    last_step_id: int = 0


class SessionTable:
    """Every open session of one stage, within a KV budget."""

    def __init__(self, budget: KvBudget, max_sessions: int, new_cache: Callable[[int], KvCache]) -> None:
        self._budget, self._max_sessions, self._new_cache = budget, max_sessions, new_cache
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    @property
    def free_tokens(self) -> int:
        return self._budget.free_tokens

    def get(self, session_id: str, epoch: int) -> Session | None:
        """The session, unless it is closed or the frame belongs to an older route."""
        session = self._sessions.get(session_id)
        return session if session is not None and session.epoch == epoch else None

    def open(
        self,
        session_id: str,
        epoch: int,
        *,
        request_id: str,
        max_tokens: int,
        sampling: SamplingParams,
        return_logits: bool,
        next_stage: NextStage | None,
        owner: Any,
        history: TokenHistory | None = None,
        gate: MaskGate | None = None,
        scoring: PromptScoring | None = None,
    ) -> Session:
        """Reserve KV cache for ``max_tokens`` and open. Raises SessionRefused; then nothing is held."""
        if session_id in self._sessions:
            raise SessionRefused(f"session {session_id} is open already")
        if len(self._sessions) >= self._max_sessions:
            raise SessionRefused(f"{len(self._sessions)} sessions are open, the most this node takes")
        if not self._budget.reserve(session_id, max_tokens):
            raise SessionRefused(
                f"KV cache for {max_tokens} tokens asked, {self._budget.free_tokens} of {self._budget.total_tokens} free"
            )
        session = Session(
            session_id, epoch, request_id, max_tokens, self._new_cache(max_tokens), sampling, return_logits, next_stage, owner, history, gate, scoring
        )  # fmt: skip
        self._sessions[session_id] = session
        return session

    def admit_step(self, session: Session, step_id: int, position: int, num_tokens: int) -> bool:
        """Whether to compute the step: False if it was computed before. Raises BadStep; then nothing has changed."""
        if step_id <= session.last_step_id:
            return False
        if position != session.next_position:
            raise BadStep(f"step at position {position}, expected {session.next_position}")
        if position + num_tokens > session.max_tokens:
            raise BadStep(
                f"step ends at {position + num_tokens}, the session is bounded at {session.max_tokens} tokens"
            )
        session.last_step_id, session.next_position = step_id, position + num_tokens
        return True

    def close(self, session_id: str) -> Session | None:
        """Forget the session and free its budget; closing twice is harmless."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._budget.release(session_id)
        return session
