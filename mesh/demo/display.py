"""Progress of the demo: packing, then one line per process while it starts, fetches and loads."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
)

from mesh.demo.processes import Event
from mesh.sizes import format_size


class Display:
    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:<11}"),
            BarColumn(),
            TextColumn("{task.fields[amount]:>21}"),
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
            case "starting":
                self._show(name, 0, None, "starting")
            case "plan":
                self._show(name, 0, event["download_bytes"], f"layers {event['layers']}")
            case "fetching":
                self._show(
                    name, event["done_bytes"], event["wanted_bytes"], f"fetching from {event['peers']} peers"
                )
            case "loading":
                self._note(name, "loading")
            case "ready" | "listening" | "seeding":
                self._finish(name, event["event"])

    def _show(self, name: str, done: int, total: int | None, note: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, note=note, amount="")
        amount = f"{format_size(done)} / {format_size(total)}" if total else ""
        self._progress.update(self._tasks[name], completed=done, total=total, note=note, amount=amount)

    def _note(self, name: str, note: str) -> None:
        if name in self._tasks:
            self._progress.update(self._tasks[name], note=note)

    def _finish(self, name: str, note: str) -> None:
        """A full bar, whether it counted bytes or not."""
        if name in self._tasks:
            total = self._progress.tasks[self._tasks[name]].total or 1
            self._progress.update(self._tasks[name], completed=total, total=total, note=note)
