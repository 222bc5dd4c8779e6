"""The benchmark lets everyone answer in every round, each first in turn, and compares with the first contender."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks import verify
from benchmarks.contenders import Answer, Task
from benchmarks.decode import Report, take_turns
from benchmarks.encoding import entropy_bound, rounded

TASK = Task("why?", (1, 2, 3), 64)


class Scripted:
    """Answers with the speeds it was given, after a warm-up."""

    def __init__(self, name: str, speeds: list[float], text: str, log: list[tuple[str, int]]) -> None:
        self.name = name
        self._speeds, self._text, self._log = [0.0, *speeds], text, log

    async def answer(self, task: Task) -> Answer:
        self._log.append((self.name, task.max_tokens))
        return Answer(self._text, task.max_tokens, self._speeds.pop(0))


async def test_everyone_warms_up_and_begins_a_round_in_turn() -> None:
    log: list[tuple[str, int]] = []
    contenders = [Scripted(name, [1.0, 2.0, 3.0], "x", log) for name in "abc"]
    await take_turns(contenders, TASK, rounds=3)
    assert log[:3] == [("a", 8), ("b", 8), ("c", 8)]
    assert "".join(name for name, _ in log[3:]) == "abcbcacab"
    assert {tokens for _, tokens in log[3:]} == {64}


async def test_report_shows_medians_ratios_and_who_answered_otherwise() -> None:
    log: list[tuple[str, int]] = []
    contenders = [Scripted("one", [10, 40, 20], "yes", log), Scripted("two", [5, 5, 80], "no", log)]
    report = Report({"model": "tiny"}, await take_turns(contenders, TASK, rounds=3))
    first, second = report.to_json()["contenders"]
    assert (first["median"], first["ratio"], first["same_answer"]) == (20, 1, True)
    assert (second["median"], second["ratio"], second["same_answer"]) == (5, 0.25, False)
    out = io.StringIO()
    Console(file=out, width=120).print(report.to_table())
    one, two = out.getvalue().splitlines()[-2:]
    assert one.split()[:5] == ["one", "20.0", "1.00", "10.0–40.0", "same"]
    assert two.split()[:5] == ["two", "5.0", "0.25", "5.0–80.0", "differs"]


def test_verify_is_measured_against_the_same_bytes(tmp_path: Path) -> None:
    shards = [verify._write(tmp_path / f"file-{n}", 1024 * 1024) for n in range(2)]
    result = verify.summary(verify.measure(shards, 2, rounds=1), 2, 2 * 1024 * 1024)
    assert result["ratio"].keys() <= {"sha256sum", "openssl-in-parallel"}
    assert "verify on 2 cores" in verify.line_of(result)


def test_release_without_a_trust_root_is_a_usage_error_in_one_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.decode", "--release", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: give --release and --trust together, or --model, or none of them\n"


def test_the_overhead_of_every_token_is_measured(tmp_path: Path) -> None:
    figures = tmp_path / "overhead.json"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.overhead",
            "--streams",
            "3",
            "--tokens",
            "10",
            "--json",
            str(figures),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    alone, together = json.loads(figures.read_text())
    assert (alone["tokens"], together["tokens"]) == (10, 30)
    # The figure itself belongs to a quiet machine; here it is held to what a stall would break.
    assert 0 < alone["p50_ms"] < 20


def test_entropy_bound_of_words_without_any_order_is_their_size_and_of_equal_words_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 1 << 16, 1 << 20).astype(np.uint16)
    assert 0.999 < entropy_bound(noise, "BF16") <= 1
    assert entropy_bound(np.full(1000, 0x3F80, np.uint16), "BF16") == 0


def test_rounding_to_bf16_goes_to_the_nearest_and_on_a_tie_to_the_even_one() -> None:
    words = np.array([0x3F800000, 0x3F808000, 0x3F808001, 0x3F818000], np.uint32)
    assert rounded(words.view(np.float32), "BF16").tolist() == [0x3F80, 0x3F80, 0x3F81, 0x3F82]


def test_missing_weights_are_not_found_in_one_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.encoding", "--weights", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr == "error: nowhere does not exist\n"
