"""Work that runs beside other work and ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None], *, name: str) -> AsyncIterator[None]:
    """Run ``work`` beside the body: it ends with the body, and if it fails the body is cancelled and its error raised."""
    body = asyncio.current_task()
    assert body is not None
    failures: list[BaseException] = []

    def on_done(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            failures.append(failure)
            body.cancel()

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(on_done)
    try:
        yield
    except asyncio.CancelledError:
        if failures:
            body.uncancel()
            raise failures[0] from None
        raise
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
