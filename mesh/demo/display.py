"""Progress bars of the demo: packing, then one bar per node while it fetches."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from mesh.demo.processes import Event


class Display:
    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:>12}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._progress.stop()

    def packing(self, done_bytes: int, total_bytes: int) -> None:
        self._show("packing", done_bytes, total_bytes, "")

    def on_event(self, name: str, event: Event) -> None:
        match event["event"]:
            case "plan":
                self._show(name, 0, event["download_bytes"], f"layers {event['layers']}")
            case "fetching":
                self._show(name, event["done_bytes"], event["wanted_bytes"], f"{event['peers']} peers")
            case "loading":
                self._note(name, "loading")
            case "ready":
                self._note(name, "ready")

    def _show(self, name: str, done: int, total: int, note: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, note=note)
        self._progress.update(self._tasks[name], completed=done, total=total, note=note)

    def _note(self, name: str, note: str) -> None:
        if name in self._tasks:
            self._progress.update(self._tasks[name], note=note)
