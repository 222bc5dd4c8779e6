"""Child processes of the demo: started in groups of their own, listened to line by line, always stopped.

Each child prints one JSON object per event on stdout (``--json``) and its log on stderr, which goes to a file. A child
that ends before the event we wait for is an error that quotes the last line it said.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from mesh.errors import MeshError
from mesh.stopping import undisturbed

_STOP_SECONDS = 8.0  # for a polite end; then the process is killed

Event = dict[str, Any]


class Child:
    """One running command of this project; ``on_event`` sees every event as it arrives."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        log: Path,
        on_event: Callable[[str, Event], None],
    ) -> None:
        self.name, self.log = name, log
        self.seen: dict[str, Event] = {}  # the first event of each kind
        self._process, self._on_event = process, on_event
        self._changed = asyncio.Condition()
        self._reader = asyncio.create_task(self._read(), name=f"read {name}")

    async def event(self, kind: str, *, within_seconds: float) -> Event:
        """The first event of that kind, once it has happened. Raises MeshError if the child ends or time runs out."""
        try:
            async with asyncio.timeout(within_seconds), self._changed:
                await self._changed.wait_for(lambda: kind in self.seen or self._reader.done())
        except TimeoutError as exc:
            raise MeshError(
                f"{self.name} said no {kind!r} within {within_seconds:g} s; its log: {self.log}"
            ) from exc
        if kind not in self.seen:
            code = await self._process.wait()
            raise MeshError(f"{self.name} ended with exit code {code}: {self.last_words()}")
        return self.seen[kind]

    @property
    def pid(self) -> int:
        return self._process.pid

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def wait(self) -> int:
        """The exit code, once it has ended by itself."""
        return await self._process.wait()

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    async def stop(self) -> int:
        """End the child; returns its exit code. Leaves nothing of it running."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(
                        self._process.pid, signal.SIGKILL
                    )  # its own group: the child and whatever it started
        code = await self._process.wait()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        return code

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            async for line in self._process.stdout:
                with contextlib.suppress(ValueError):  # a line for people, not for us
                    event = json.loads(line)
                    self.seen.setdefault(event["event"], event)
                    self._on_event(self.name, event)
                    await self._announce()
        finally:
            # The waiters check reader.done(), which is true only after this task has returned.
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._announce()))

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()


@contextlib.asynccontextmanager
async def children(
    logs: Path, on_event: Callable[[str, Event], None]
) -> AsyncIterator[Callable[[str, Sequence[str]], Any]]:
    """Yields ``start(name, argv)``; on leaving, however that happens, every child is stopped, last started first."""
    spawned: list[asyncio.Task[Child]] = []

    async def spawn(name: str, argv: Sequence[str]) -> Child:
        on_event(name, {"event": "starting"})
        log = logs / f"{name}.log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                # Ctrl-C reaches the parent alone; it ends its children in order.
                start_new_session=True,
            )
        return Child(name, process, log, on_event)

    async def start(name: str, argv: Sequence[str]) -> Child:
        # Shielded and remembered: cancelled between fork and return, the process would be nobody's.
        spawned.append(asyncio.create_task(spawn(name, argv)))
        return await asyncio.shield(spawned[-1])

    try:
        yield start
    finally:
        await undisturbed(_stop_all(spawned))


async def _stop_all(spawned: Sequence[asyncio.Task[Child]]) -> None:
    started = await asyncio.gather(*spawned, return_exceptions=True)
    await asyncio.gather(*(child.stop() for child in reversed(started) if isinstance(child, Child)))


def command(name: str) -> str:
    """The console script of this project that belongs to the running interpreter."""
    return str(Path(sys.executable).parent / name)
