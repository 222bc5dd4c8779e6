"""A transfer as people know it from torrent clients: how far, how fast, from how many, how long still, shard by shard.

``TransferView`` draws on stderr where somebody is watching and says a line now and then where nobody is;
``progress_facts`` is the same as a value for programs (schema in docs/operator.md). What is drawn is decided by pure
functions of the progress and of the room there is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mesh.sizes import format_size
from mesh.swarm.speed import Speed

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from mesh.swarm.fetching import FetchProgress, ShardProgress

JSON_SECONDS = 1.0  # between progress events
LINE_SECONDS = 10.0  # between lines where nobody watches
RATE_SECONDS = 10.0  # the speed that the time left is computed from is an average over about so long
MAX_ROWS = 12
_ACTIVE = ("verifying", "decoding", "fetching")
_WIDEST_BAR = 24
_COLOURS = {"done": "green", "fetched": "cyan", "verifying": "magenta", "decoding": "magenta"}


class Eta:
    """Seconds left, from a smoothed speed: a torrent's momentary one jumps."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._speed: Speed | None = None

    def seconds(self, progress: FetchProgress) -> float | None:
        """None while nothing is coming."""
        left = progress.wanted_bytes - progress.done_bytes
        if progress.state != "fetching":
            self._speed = None  # what is found on the disk did not come over the line
            return 0.0 if left <= 0 else None
        self._speed = self._speed or Speed(RATE_SECONDS, self._now)
        speed = self._speed.of(progress.done_bytes)
        return left / speed if speed > 0 else None


def progress_facts(
    progress: FetchProgress, eta_seconds: float | None, changed: list[ShardProgress]
) -> dict[str, Any]:
    return {
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
    """Facts for programs: one a second and at each change of state, each with the shards that changed since the last."""

    def __init__(
        self,
        emit: Callable[[dict[str, Any]], None],
        now: Callable[[], float] = time.monotonic,
        *,
        every_seconds: float = JSON_SECONDS,
    ) -> None:
        self._emit, self._now, self._eta, self._every = emit, now, Eta(now), every_seconds
        self._said_at, self._state = float("-inf"), ""
        self._shards: dict[str, ShardProgress] = {}

    def __call__(self, progress: FetchProgress) -> None:
        eta, now = self._eta.seconds(progress), self._now()
        is_last = progress.shards and all(shard.state == "done" for shard in progress.shards)
        if progress.state == self._state and now - self._said_at < self._every and not is_last:
            return
        changed = [shard for shard in progress.shards if self._shards.get(shard.file) != shard]
        self._shards |= {shard.file: shard for shard in changed}
        self._said_at, self._state = now, progress.state
        self._emit(progress_facts(progress, eta, changed))


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
            self._draw(view(self._name, progress, eta, self._console.width, self._console.height))
        elif time.monotonic() - self._said_at >= LINE_SECONDS:
            self._said_at = time.monotonic()
            sys.stderr.write(headline(self._name, progress, eta) + "\n")

    def seeding(self, upload_rate: int, uploaded_bytes: int, num_peers: int, total_bytes: int) -> None:
        if self._console.is_terminal:
            from rich.text import Text

            ratio = uploaded_bytes / total_bytes if total_bytes else 0.0
            facts = (
                f"↑ {format_size(upload_rate)}/s  {format_size(uploaded_bytes)} uploaded (ratio {ratio:.2f})"
                f"  {_peers(num_peers)}" + ("  Ctrl-C ends it" if self._console.width >= 100 else "")
            )
            name = _shortened(self._name, self._console.width - len("seeding   ") - len(facts) - 1)
            self._draw(Text(f"seeding {name}  {facts}", no_wrap=True, overflow="ellipsis"))

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
    """All shards where there is room; else those on which something happens, the furthest, and how the rest stand.

    Always in the manifest's order, so that no row jumps to another place.
    """
    if len(shards) <= rows:
        return list(shards), ""
    active = [shard for shard in shards if shard.state in _ACTIVE]
    active.sort(key=lambda shard: (_ACTIVE.index(shard.state), -shard.done_bytes / max(1, shard.size)))
    chosen = active[: rows - 1]
    shown = [shard for shard in shards if shard in chosen]
    hidden = [shard for shard in shards if shard not in shown]
    counts = {
        state: sum(shard.state == state for shard in hidden)
        for state in ("done", "fetched", *_ACTIVE, "wanted")
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


def view(
    name: str, progress: FetchProgress, eta_seconds: float | None, width: int, height: int
) -> RenderableType:
    """The whole in two lines, then the shards; no line is wider than ``width``, so that none is wrapped."""
    from rich.console import Group
    from rich.text import Text

    width -= 1  # a full last column makes some terminals begin another line
    shown, summary = shown_shards(progress.shards, max(1, min(MAX_ROWS, height - 4)))
    lines = [*_head(name, progress, eta_seconds, width), *_rows(shown, width)]
    if summary:
        lines.append(Text(f"  {summary}", style="bright_black"))
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return Group(*lines)


def _head(name: str, progress: FetchProgress, eta_seconds: float | None, width: int) -> list[Text]:
    from rich.text import Text

    done, wanted = progress.done_bytes, progress.wanted_bytes
    web = f" + web {format_size(progress.web_seed_bytes)}" if progress.web_seed_bytes else ""
    share = done / wanted if wanted else 1.0
    end = f"  {int(100 * share):>3} %  ETA {format_eta(eta_seconds)}"
    begin = f"{progress.state} {_shortened(name, width // 2 - len(progress.state))}  "
    first = Text(begin, style="bold") + _bar(share, max(8, width - len(begin) - len(end))) + Text(end)
    second = Text(
        f"  {format_size(done)} of {format_size(wanted)}  ↓ {format_size(progress.rate)}/s"
        f"  ↑ {format_size(progress.upload_rate)}/s  {_peers(progress.num_peers)}{web}"
    )
    return [first, second]


def _rows(shards: list[ShardProgress], width: int) -> list[Text]:
    from rich.text import Text

    longest = max((len(shard.file) for shard in shards), default=0)
    rest = len("    100 %  verifying  1023.9 MiB")
    bar = max(8, min(_WIDEST_BAR, width - rest - 2 - longest))
    column = max(8, min(longest, width - rest - 2 - bar))
    lines = []
    for shard in shards:
        share = shard.done_bytes / shard.size if shard.size else 1.0
        line = Text(f"  {_shortened(shard.file, column):<{column}}  ")
        line += _bar(share, bar, _COLOURS.get(shard.state, "blue"))
        line += Text(f"  {int(100 * share):>3} %  {shard.state:<9}  {format_size(shard.size):>10}")
        lines.append(line)
    return lines


def _bar(share: float, width: int, style: str = "blue") -> Text:
    from rich.text import Text

    filled = int(share * width)
    return Text("━" * filled, style=style) + Text("─" * (width - filled), style="bright_black")


def _shortened(text: str, width: int) -> str:
    """Both ends of a name say more than its first half."""
    if len(text) <= width:
        return text
    width = max(3, width)
    return f"{text[: width // 2]}…{text[len(text) - (width - 1) // 2 :]}"


def _peers(count: int) -> str:
    return f"{count} peer" if count == 1 else f"{count} peers"
