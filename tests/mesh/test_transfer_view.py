"""What a transfer looks like on a terminal: right facts, no line wider than the window, whatever the window."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from mesh.cli.transfers import Eta, ProgressEvents, TransferView, shown_shards, view
from mesh.swarm.fetching import FetchProgress, ShardProgress
from mesh.swarm.speed import Speed
from tests.support.clock import ManualClock

MIB = 1024 * 1024
NAME = "Meta-Llama-3.1-70B-Instruct-a-fine-tune-with-a-long-name"


def transfer(num_layers: int) -> FetchProgress:
    """Of layers: one is here, one is half here, the others are wanted."""
    states = [(4 * MIB, "done"), (2 * MIB, "fetching"), *[(0, "wanted")] * (num_layers - 2)]
    shards = tuple(
        ShardProgress(f"layer-{index:05}.safetensors", 4 * MIB, done, state)
        for index, (done, state) in enumerate(states)
    )
    return FetchProgress("fetching", 4 * MIB * num_layers, 6 * MIB, 2 * MIB, 3, 512 * 1024, MIB, 0, shards)


def drawn(progress: FetchProgress, width: int, height: int = 24, name: str = NAME) -> list[str]:
    console = Console(record=True, width=width, height=height, file=io.StringIO(), force_terminal=True)
    console.print(view(name, progress, 33.0, width, height))
    return console.export_text().splitlines()


def test_few_shards_are_shown_one_by_one() -> None:
    lines = drawn(transfer(3), 80, name="tiny")

    assert lines[0].startswith("fetching tiny  ━━━")
    assert lines[0].endswith("─   50 %  ETA 0:33")
    assert lines[1] == "  6.0 MiB of 12.0 MiB  ↓ 2.0 MiB/s  ↑ 512.0 KiB/s  3 peers"
    bar = 22
    assert lines[2:] == [
        f"  layer-00000.safetensors  {'━' * bar}  100 %  done          4.0 MiB",
        f"  layer-00001.safetensors  {'━' * (bar // 2)}{'─' * (bar // 2)}   50 %  fetching      4.0 MiB",
        f"  layer-00002.safetensors  {'─' * bar}    0 %  wanted        4.0 MiB",
    ]


def test_of_many_shards_the_active_ones_are_shown_and_the_rest_in_one_line() -> None:
    lines = drawn(transfer(80), 120)

    assert "layer-00001.safetensors" in lines[2]
    assert lines[3:] == ["  80 shards; besides these 1 done, 78 wanted"]


def test_of_too_many_active_ones_the_furthest_are_shown_and_rows_keep_their_places() -> None:
    shards = tuple(
        ShardProgress(f"layer-{index:05}.safetensors", 100, done, "fetching")
        for index, done in enumerate((10, 70, 5, 90, 20))
    )

    shown, summary = shown_shards(shards, 3)

    assert [shard.done_bytes for shard in shown] == [70, 90]
    assert summary == "5 shards; besides these 3 fetching"


@given(
    st.integers(20, 200),
    st.integers(1, 60),
    st.integers(2, 100),
    st.text(st.characters(categories=["L"]), max_size=80),
)
def test_no_line_fills_the_last_column_and_the_view_fits_the_window(
    width: int, height: int, num_layers: int, name: str
) -> None:
    lines = drawn(transfer(num_layers), width, height, name)

    assert max(map(cell_len, lines)) < width
    assert len(lines) <= max(4, height - 1)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_seeding_is_one_line(width: int) -> None:
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    with TransferView(NAME, console) as watched:
        watched.seeding(2 * MIB, 30 * MIB, 1, 20 * MIB)
        shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "seeding " in shown
    assert "↑ 2.0 MiB/s" in shown
    assert shown.count("\n") == 0


def test_time_left_follows_the_speed_of_the_last_seconds() -> None:
    clock, progress = ManualClock(), transfer(3)
    eta = Eta(clock.monotonic)

    assert eta.seconds(replace(progress, done_bytes=0)) is None
    clock.advance(2)
    assert eta.seconds(replace(progress, done_bytes=2 * MIB)) == 10.0
    clock.advance(60)  # nobody sends anything any more
    assert eta.seconds(replace(progress, done_bytes=2 * MIB)) is None
    assert eta.seconds(replace(progress, state="verifying", done_bytes=12 * MIB)) == 0.0


def test_speed_forgets_what_lies_outside_its_window() -> None:
    clock = ManualClock()
    speed = Speed(3.0, clock.monotonic)

    seen = []
    for total in (0, 100, 200, 300, 300, 300, 300, 300):
        seen.append(speed.of(total))
        clock.advance(1)

    assert seen[:4] == [0.0, 100.0, 100.0, 100.0]
    assert seen[-1] == 0.0


def test_programs_are_told_of_each_shard_once_it_changes() -> None:
    clock, said = ManualClock(), list[dict[str, object]]()
    events = ProgressEvents(said.append, clock.monotonic)
    progress = transfer(3)

    events(progress)
    events(replace(progress, done_bytes=7 * MIB))  # too soon
    clock.advance(1)
    moved = replace(progress.shards[1], done_bytes=3 * MIB)
    events(replace(progress, done_bytes=7 * MIB, shards=(progress.shards[0], moved, progress.shards[2])))

    assert [len(event["shards"]) for event in said] == [3, 1]  # type: ignore[arg-type]
    assert said[1]["shards"] == [
        {"file": moved.file, "state": "fetching", "done_bytes": 3 * MIB, "bytes": 4 * MIB}
    ]
