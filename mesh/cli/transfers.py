"""A transfer as people know it from torrent clients: how far, how fast, from how many, how long still, shard by shard.

``TransferView`` draws on stderr where somebody is watching and says a line now and then where nobody is;
``progress_event`` is the same as a value for programs (schema in docs/operator.md). What is drawn is decided by pure
functions of the progress and of the room there is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mesh.sizes import format_size

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from mesh.swarm.fetching import FetchProgress, ShardProgress

JSON_SECONDS = 1.0  # between progress events
LINE_SECONDS = 10.0  # between lines where nobody watches
RATE_SECONDS = 10.0  # the speed that the time left is computed from is an average over about so long
MAX_ROWS = 12
_ACTIVE = ("verifying", "fetching")
_BAR = 24


class Eta:
    """Seconds left, from a smoothed speed: a torrent's momentary one jumps."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._rate: float | None = None
        self._seen: tuple[float, int] | None = None

    def seconds(self, progress: FetchProgress) -> float | None:
        """None while nothing is coming."""
        now, done = self._now(), progress.done_bytes
        if progress.state != "fetching":
            self._seen = None  # what is found on the disk did not come over the line
            return 0.0 if progress.done_bytes >= progress.wanted_bytes else None
        if self._seen is None:
            self._seen = now, done
        elif (passed := now - self._seen[0]) >= 0.2:
            rate = (done - self._seen[1]) / passed
            weight = min(1.0, passed / RATE_SECONDS)
            self._rate = rate if self._rate is None else self._rate + weight * (rate - self._rate)
            self._seen = now, done
        rate = max(self._rate or 0.0, float(progress.rate) if not self._rate else 0.0)
        return (progress.wanted_bytes - done) / rate if rate > 0 else None


def progress_event(
    progress: FetchProgress, eta_seconds: float | None, changed: list[ShardProgress]
) -> dict[str, Any]:
    return {
        "event": "progress",
        "state": progress.state,
        "done_bytes": progress.done_bytes,
        "wanted_bytes": progress.wanted_bytes,
        "rate": progress.rate,
        "upload_rate": progress.upload_rate,
        "uploaded_bytes": progress.uploaded_bytes,
        "web_seed_bytes": progress.web_seed_bytes,
        "peers": progress.num_peers,
        "eta_seconds": None if eta_seconds is None else round(eta_seconds, 1),
        "shards": [
            {"file": shard.file, "state": shard.state, "done_bytes": shard.done_bytes, "bytes": shard.size}
            for shard in changed
        ],
    }


class ProgressEvents:
    """Events for programs: one a second and at each change of state, each with the shards that changed since the last."""

    def __init__(
        self, emit: Callable[[dict[str, Any]], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._emit, self._now, self._eta = emit, now, Eta(now)
        self._said_at, self._state = float("-inf"), ""
        self._shards: dict[str, ShardProgress] = {}

    def __call__(self, progress: FetchProgress) -> None:
        eta, now = self._eta.seconds(progress), self._now()
        is_last = progress.shards and all(shard.state == "done" for shard in progress.shards)
        if progress.state == self._state and now - self._said_at < JSON_SECONDS and not is_last:
            return
        changed = [shard for shard in progress.shards if self._shards.get(shard.file) != shard]
        self._shards |= {shard.file: shard for shard in changed}
        self._said_at, self._state = now, progress.state
        self._emit(progress_event(progress, eta, changed))


class TransferView:
    """``with TransferView(name) as view: fetch(..., on_progress=view.fetching)``."""

    def __init__(self, name: str, console: Console | None = None) -> None:
        from rich.console import Console

        self._name, self._console = name, console or Console(stderr=True)
        self._live: Any = None
        self._eta, self._said_at = Eta(), time.monotonic()

    @property
    def is_watched(self) -> bool:
        return self._console.is_terminal

    def __enter__(self) -> TransferView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def fetching(self, progress: FetchProgress) -> None:
        eta = self._eta.seconds(progress)
        if self._console.is_terminal:
            rows = max(1, min(MAX_ROWS, self._console.height - 4))
            self._draw(_table(self._name, progress, eta, rows, self._console.width))
        elif time.monotonic() - self._said_at >= LINE_SECONDS:
            self._said_at = time.monotonic()
            sys.stderr.write(headline(self._name, progress, eta) + "\n")

    def seeding(self, upload_rate: int, uploaded_bytes: int, num_peers: int, total_bytes: int) -> None:
        if self._console.is_terminal:
            ratio = uploaded_bytes / total_bytes if total_bytes else 0.0
            self._draw(
                f"seeding {self._name}  ↑ {format_size(upload_rate)}/s  {format_size(uploaded_bytes)} uploaded"
                f" (ratio {ratio:.2f})  {_peers(num_peers)}  Ctrl-C ends it"
            )

    def _draw(self, what: RenderableType) -> None:
        if self._live is None:
            from rich.live import Live

            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(what, refresh=True)


def headline(name: str, progress: FetchProgress, eta_seconds: float | None) -> str:
    done, wanted = progress.done_bytes, progress.wanted_bytes
    percent = 100 * done // wanted if wanted else 100
    web = f" + web {format_size(progress.web_seed_bytes)}" if progress.web_seed_bytes else ""
    return (
        f"{progress.state} {name}  {percent} %  {format_size(done)} of {format_size(wanted)}"
        f"  ↓ {format_size(progress.rate)}/s  ↑ {format_size(progress.upload_rate)}/s"
        f"  {_peers(progress.num_peers)}{web}  ETA {format_eta(eta_seconds)}"
    )


def shown_shards(shards: tuple[ShardProgress, ...], rows: int) -> tuple[list[ShardProgress], str]:
    """All shards where there is room; else those on which something happens, furthest first, and how the rest stand."""
    if len(shards) <= rows:
        return list(shards), ""
    active = [shard for shard in shards if shard.state in _ACTIVE]
    active.sort(key=lambda shard: (_ACTIVE.index(shard.state), -shard.done_bytes / max(1, shard.size)))
    shown = active[: rows - 1]
    hidden = [shard for shard in shards if shard not in shown]
    counts = {
        state: sum(shard.state == state for shard in hidden)
        for state in ("done", "fetched", "fetching", "wanted")
    }
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return (
        shown,
        f"{len(shards)} shards; besides these {summary}" if shown else f"{len(shards)} shards: {summary}",
    )


def format_eta(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} days"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _table(name: str, progress: FetchProgress, eta: float | None, rows: int, width: int) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown, summary = shown_shards(progress.shards, rows)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(12, width - _BAR - 32))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    for shard in shown:
        share = shard.done_bytes / shard.size if shard.size else 1.0
        filled = int(share * _BAR)
        style = {"done": "green", "fetched": "cyan", "verifying": "magenta"}.get(shard.state, "blue")
        bar = Text("━" * filled, style=style) + Text("━" * (_BAR - filled), style="bright_black")
        table.add_row(f"  {shard.file}", bar, f"{shard.state:<9}", format_size(shard.size))
    lines: list[RenderableType] = [
        Text(headline(name, progress, eta), no_wrap=True, overflow="ellipsis"),
        table,
    ]
    if summary:
        lines.append(Text(f"  {summary}", style="bright_black"))
    return Group(*lines)


def _peers(count: int) -> str:
    return f"{count} peer" if count == 1 else f"{count} peers"
