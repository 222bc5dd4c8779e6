"""A generation in a task of its own, so that whoever serves its events can come, wait and go as HTTP demands.

The task owns the session from opening to leaving; the pipeline's context managers never see two tasks. The events
wait in a queue that only the context length bounds: a client that reads slowly must not hold KV cache on every
stage.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from types import TracebackType
from typing import Self

from coordinator.generation import Event
from mesh.errors import RequestRefused


class RunningGeneration:
    """``async with`` it: leaving cancels what still runs and waits until the session is left.

    After ``timeout_seconds`` the generation is given up as a client's own deadline asks.
    """

    def __init__(self, events: AsyncGenerator[Event, None], timeout_seconds: float | None = None) -> None:
        self._source, self._timeout_seconds = events, timeout_seconds
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()  # None: no more will come
        self._begun = asyncio.Event()  # the first event is there, or there will be none
        self._is_silent = True

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._end)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    @property
    def error(self) -> BaseException | None:
        """What ended the generation early, once ``events`` has ended."""
        return self._task.exception()

    async def begun(self, patience_seconds: float) -> None:
        """Returns with the first event or when patience ends. Raises what ended the generation before that."""
        try:
            async with asyncio.timeout(patience_seconds):
                await self._begun.wait()
        except TimeoutError:
            return
        if self._is_silent and self.error is not None:
            raise self.error

    async def events(self) -> AsyncIterator[Event]:
        """All of them, once; whether an answer is complete, ``error`` says."""
        while (event := await self._events.get()) is not None:
            yield event

    async def _run(self) -> None:
        deadline = asyncio.timeout(self._timeout_seconds)
        try:
            async with deadline, aclosing(self._source) as events:
                async for event in events:
                    self._events.put_nowait(event)
                    self._is_silent = False
                    self._begun.set()
        except TimeoutError as exc:
            if not deadline.expired():
                raise
            raise RequestRefused(
                f"the answer was not finished within the {self._timeout_seconds:g} s that the request gives it",
                status=504,
                code="deadline_exceeded",
                param="timeout",
            ) from exc

    def _end(self, task: asyncio.Task[None]) -> None:
        self._events.put_nowait(None)
        self._begun.set()
        if not task.cancelled():
            task.exception()  # seen, even if the client has gone and nobody asks
