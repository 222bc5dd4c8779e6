"""SIGTERM and Ctrl-C for asyncio programs: the story is cancelled once, and every ``async with`` puts its part in order.

    return run_until_signal(serve(config))      # 130 or 143, or None if the story ended by itself

Knows signals and tasks, nothing of what the story does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_until_signal(story: Coroutine[Any, Any, None], *, second_forces: bool = True) -> int | None:
    """Run the story to its end. Returns 128 + the number of the signal that ended it, else None.

    A second signal ends the process at once, as an impatient person means it; a story that has children to stop
    passes ``second_forces=False`` and bounds its own end. Whatever else the story raises is raised.
    """
    received: list[int] = []
    cancel: list[Callable[[], object]] = []  # empty before the loop runs

    # Plain handlers, not the loop's: those lose a signal that comes while the loop is being made or closed.
    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1 and cancel:
            cancel[0]()
        elif len(received) > 1 and second_forces:
            os._exit(128 + number)

    async def tell() -> None:
        task, loop = asyncio.create_task(story, name="story"), asyncio.get_running_loop()
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel))
        if received:
            task.cancel()
        await task

    previous = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        asyncio.run(tell())
    except asyncio.CancelledError:
        if not received:
            raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if not received:
        return None
    logger.info("stopped", extra={"signal": signal.Signals(received[0]).name})
    return 128 + received[0]


async def undisturbed(cleanup: Coroutine[Any, Any, None]) -> None:
    """Finish a cleanup that is bounded in time even if we are cancelled meanwhile; the cancellation is raised after."""
    task = asyncio.create_task(cleanup)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled
    task.result()
