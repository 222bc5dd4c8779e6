"""The engine: computes steps on one worker thread, batching whatever is ready.

It knows the stage, caches and sampling; nothing of gRPC, sessions' owners or routes. The event loop submits work and
gets results back through one callback per batch, so that neither side ever waits for the other.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from mesh.errors import MeshError, Unhealthy
from mesh.model.kv_cache import KvCache
from mesh.model.llama import StageStep
from mesh.model.logprobs import TokenLogprobs, token_logprobs
from mesh.model.penalties import TokenHistory
from mesh.model.sampling import SamplingParams, sample
from mesh.wire.tensors import Rows
from node.scheduling import choose_batch
from node.sessions import PromptScoring

logger = logging.getLogger(__name__)

_SCORED_ROWS = 16  # of a prompt at a time: logits of a whole chunk would take a hundred megabytes


class ComputeStage(Protocol):
    """The seam where a faster stage drops in: a batch of steps of several sessions, one result each."""

    def run(self, steps: Sequence[StageStep]) -> list[torch.Tensor]: ...

    def logits(self, rows: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """One step to compute. Either ``token_ids`` or ``hidden`` is given, by the stage's place in the route."""

    session: str
    step_id: int
    cache: KvCache
    position: int
    num_tokens: int
    token_ids: tuple[int, ...] | None  # [T]
    hidden: Rows | None  # [T, hidden_size]
    sampling: SamplingParams | None  # draw a token from the last row
    return_logits: bool
    tag: Any  # the submitter's, handed back untouched
    history: TokenHistory | None = None  # the session's; every draw is written into it
    mask: bytes | None = None  # bits, lowest first: which tokens may be drawn
    scoring: PromptScoring | None = None  # score the prompt tokens that follow this step's


@dataclass(frozen=True, slots=True)
class Sampled:
    token_id: int
    position: int  # where the token will stand when it is fed back
    logits: np.ndarray[Any, np.dtype[np.float32]] | None  # [vocab_size]
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """Either ``hidden`` or ``error`` is set, or on a last stage what the step was asked for, perhaps nothing."""

    work: Work
    hidden: Rows | None = None
    sampled: Sampled | None = None
    error: MeshError | None = None
    scores: tuple[TokenLogprobs, ...] = ()  # of the prompt tokens from position ``work.position + 1`` on


class EngineFailure(MeshError):
    """A step that could not be computed; its session is lost, the engine goes on."""


class Engine:
    """Start with ``start``, feed with ``submit``, end with ``stop``. ``on_done`` runs on the event loop."""

    def __init__(
        self,
        stage: ComputeStage,
        *,
        is_last: bool,
        device: str,
        on_done: Callable[[list[Done]], None],
    ) -> None:
        self._stage, self._is_last, self._device, self._on_done = stage, is_last, device, on_done
        self._queue: list[Work] = []
        self._ready = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self.steps_computed = 0

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, work: Work) -> None:
        with self._ready:
            self._queue.append(work)
            self._ready.notify()

    def drop(self, session: str) -> list[Work]:
        """Forget a session's waiting steps and return them; one being computed still comes back through ``on_done``."""
        with self._ready:
            dropped = [work for work in self._queue if work.session == session]
            self._queue = [work for work in self._queue if work.session != session]
        return dropped

    async def stop(self) -> None:
        """Finish the batch being computed, forget the rest."""
        with self._ready:
            self._stopping = True
            self._ready.notify()
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            done = self._compute(batch)
            self.steps_computed += len(batch)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._on_done, done)

    def _next_batch(self) -> list[Work] | None:
        with self._ready:
            self._ready.wait_for(lambda: self._queue or self._stopping)
            if self._stopping:
                return None
            batch = choose_batch(self._queue)
            chosen = set(map(id, batch))
            self._queue = [work for work in self._queue if id(work) not in chosen]
            return batch

    def _compute(self, batch: list[Work]) -> list[Done]:
        try:
            outputs = self._stage.run([self._stage_step(work) for work in batch])
            return [self._result(work, output) for work, output in zip(batch, outputs, strict=True)]
        except (MeshError, RuntimeError) as exc:  # torch reports out of memory and bad shapes as RuntimeError
            logger.exception("engine step failed", extra={"sessions": [work.session for work in batch]})
            failure = EngineFailure(f"engine: {exc}".splitlines()[0])
            return [Done(work, error=failure) for work in batch]

    def _stage_step(self, work: Work) -> StageStep:
        ids = hidden = None
        if work.token_ids is not None:
            ids = torch.tensor(work.token_ids, dtype=torch.int64, device=self._device)
        else:
            assert work.hidden is not None
            # The rows may be a read-only view of a frame; the stage must own what it may write to.
            hidden = torch.from_numpy(np.array(work.hidden)).to(self._device)
        all_rows = work.scoring is not None
        return StageStep(work.cache, work.position, ids, hidden, work.sampling is not None, all_rows)

    def _result(self, work: Work, output: torch.Tensor) -> Done:
        if not self._is_last:
            return Done(work, hidden=output.to("cpu", torch.float32).numpy())
        scores: tuple[TokenLogprobs, ...] = ()
        if work.scoring is not None:
            scores = self._scores(work, work.scoring, output)
        if work.sampling is None:
            return Done(work, scores=scores)
        if work.scoring is not None:
            output = self._stage.logits(output[-1:])[0]  # alone, as any other row that is drawn from
        logits = output.to("cpu", torch.float32).numpy()
        position = work.position + work.num_tokens
        try:
            token_id = sample(logits, work.sampling, position, work.history, _allowed(work.mask, len(logits)))
        except Unhealthy as exc:  # this session's logits overflowed; the others of the batch are sound
            return Done(work, error=EngineFailure(f"engine: {exc}"))
        if work.history is not None:
            work.history.put(position, token_id)
        logprobs = None
        if (top := work.sampling.top_logprobs) is not None:
            [logprobs] = token_logprobs(logits[None], [token_id], top)
        sampled = Sampled(token_id, position, logits if work.return_logits else None, logprobs)
        return Done(work, sampled=sampled, scores=scores)

    def _scores(self, work: Work, scoring: PromptScoring, rows: torch.Tensor) -> tuple[TokenLogprobs, ...]:
        ids = scoring.ids_after(work.position, work.num_tokens)
        scores: list[TokenLogprobs] = []
        for first in range(0, len(ids), _SCORED_ROWS):
            wanted = ids[first : first + _SCORED_ROWS]
            logits = self._stage.logits(rows[first : first + len(wanted)]).to("cpu", torch.float32).numpy()
            scores += token_logprobs(logits, wanted, scoring.top)
        return tuple(scores)


def _allowed(mask: bytes | None, vocab_size: int) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    if mask is None:
        return None
    return np.unpackbits(np.frombuffer(mask, np.uint8), count=vocab_size, bitorder="little").view(np.bool_)
