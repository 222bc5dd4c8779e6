"""Hidden states to frames and back.

A frame of steps holds the rows of several sessions in one payload of at most 1 MiB; a longer tensor travels in several
frames, in order. What arrives is checked against the stage's contract (dtype, hidden size, rows, byte count) before a
byte of it is used. Knows nothing of links, sessions or torch: numpy arrays in, numpy arrays out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mesh.errors import MeshError
from mesh.wire import common_pb2, stage_pb2

MAX_PAYLOAD_BYTES = 1 << 20
Rows = np.ndarray[Any, np.dtype[np.float32]]  # [T, hidden_size]

FLOAT32 = common_pb2.DTYPE_FLOAT32
_NUMPY: dict[int, np.dtype[Any]] = {FLOAT32: np.dtype("<f4")}


class FrameRefused(MeshError):
    """A frame that breaks the stage contract. Attributes: ``session`` it concerns, empty if none can be named."""

    def __init__(self, message: str, session: str = "") -> None:
        super().__init__(message)
        self.session = session


def pack_rows(steps: Iterable[tuple[stage_pb2.Step, Rows]], hidden_size: int) -> Iterator[stage_pb2.Steps]:
    """Pack whole steps into as few frames as the payload bound allows.

    The headers are completed here: ``num_tokens``, ``first_row`` and ``num_rows``.
    """
    row_bytes = hidden_size * 4
    max_rows = max(1, MAX_PAYLOAD_BYTES // row_bytes)
    headers: list[stage_pb2.Step] = []
    parts: list[bytes] = []
    room = max_rows

    def frame() -> stage_pb2.Steps:
        return stage_pb2.Steps(dtype=FLOAT32, hidden_size=hidden_size, steps=headers, payload=b"".join(parts))

    for header, rows in steps:
        assert rows.dtype == np.float32
        assert rows.ndim == 2
        assert rows.shape[1] == hidden_size
        num_tokens, first = rows.shape[0], 0
        while first < num_tokens:
            if room == 0:
                yield frame()
                headers, parts, room = [], [], max_rows
            count = min(room, num_tokens - first)
            part = stage_pb2.Step()
            part.CopyFrom(header)
            part.num_tokens, part.first_row, part.num_rows = num_tokens, first, count
            headers.append(part)
            parts.append(rows[first : first + count].tobytes())
            first, room = first + count, room - count
    if headers:
        yield frame()


def pack_token_ids(header: stage_pb2.Step) -> stage_pb2.Steps:
    """One step of token ids for a first stage; the header holds everything."""
    header.num_tokens = len(header.token_ids)
    return stage_pb2.Steps(steps=[header])


@dataclass(frozen=True, slots=True)
class StageContract:
    """What a stage accepts on its input side."""

    is_first: bool  # token ids instead of rows
    hidden_size: int
    vocab_size: int
    max_step_tokens: int


@dataclass(slots=True)
class _Partial:
    header: stage_pb2.Step
    rows: Rows
    filled: int = 0


@dataclass(slots=True)
class StepAssembler:
    """Turns frames into whole steps, holding at most one unfinished step per session."""

    contract: StageContract
    _partial: dict[str, _Partial] = field(default_factory=dict)

    def push(self, frame: stage_pb2.Steps) -> list[tuple[stage_pb2.Step, Rows | None]]:
        """The steps that this frame completes, with their rows (None for token ids). Raises FrameRefused."""
        if self.contract.is_first:
            if frame.payload:
                raise FrameRefused("the first stage takes token ids, not hidden states")
            return [(self._checked_ids(step), None) for step in frame.steps]
        payload = frame.payload  # each access copies: read once
        if frame.dtype not in _NUMPY:
            raise FrameRefused(f"dtype {frame.dtype} is not the agreed float32")
        if frame.hidden_size != self.contract.hidden_size:
            raise FrameRefused(f"hidden size {frame.hidden_size}, expected {self.contract.hidden_size}")
        declared = sum(step.num_rows for step in frame.steps)
        row_bytes = 4 * frame.hidden_size
        if declared * row_bytes != len(payload):
            raise FrameRefused(f"payload of {len(payload)} bytes, expected {declared} rows of {row_bytes}")
        rows = np.frombuffer(payload, dtype=_NUMPY[frame.dtype]).reshape(declared, frame.hidden_size)
        done: list[tuple[stage_pb2.Step, Rows | None]] = []
        offset = 0
        for step in frame.steps:
            whole = self._add(step, rows[offset : offset + step.num_rows])
            offset += step.num_rows
            if whole is not None:
                done.append((step, whole))
        return done

    def forget(self, session: str) -> None:
        self._partial.pop(session, None)

    def _checked_ids(self, step: stage_pb2.Step) -> stage_pb2.Step:
        if not 0 < step.num_tokens <= self.contract.max_step_tokens or step.num_tokens != len(step.token_ids):
            raise FrameRefused(
                f"step of {len(step.token_ids)} ids declared as {step.num_tokens}, "
                f"expected 1 to {self.contract.max_step_tokens}",
                step.session,
            )
        if max(step.token_ids) >= self.contract.vocab_size:
            raise FrameRefused(f"token id {max(step.token_ids)} outside the vocabulary", step.session)
        return step

    def _add(self, step: stage_pb2.Step, rows: Rows) -> Rows | None:
        """Rows of one step; the whole tensor when complete."""
        if not 0 < step.num_tokens <= self.contract.max_step_tokens:
            raise FrameRefused(
                f"step of {step.num_tokens} tokens, expected 1 to {self.contract.max_step_tokens}",
                step.session,
            )
        if step.first_row == 0 and step.num_rows == step.num_tokens:
            self._partial.pop(step.session, None)
            return rows  # the common case: no copy; read-only, as frombuffer gives it
        if step.first_row == 0:
            whole = np.empty((step.num_tokens, rows.shape[1]), dtype=np.float32)
            self._partial[step.session] = _Partial(step, whole)
        partial = self._partial.get(step.session)
        if (
            partial is None
            or partial.header.step_id != step.step_id
            or partial.header.num_tokens != step.num_tokens
            or partial.filled != step.first_row
            or step.num_rows == 0
            or step.first_row + step.num_rows > step.num_tokens
        ):
            self._partial.pop(step.session, None)
            raise FrameRefused(
                f"rows {step.first_row}+{step.num_rows} do not continue their step", step.session
            )
        partial.rows[step.first_row : step.first_row + step.num_rows] = rows
        partial.filled += step.num_rows
        if partial.filled < step.num_tokens:
            return None
        del self._partial[step.session]
        return partial.rows
