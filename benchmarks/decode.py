"""Tokens per second of one process, of a mesh of nodes on this machine and of ``transformers``, in one run.

    python -m benchmarks.decode                              # the demo model
    python -m benchmarks.decode --model model.gguf --rounds 7
    python -m benchmarks.decode --release DIR --trust publisher.pub

A machine's speed drifts by tens of percent within minutes, so figures of different runs do not compare. Here the
contenders take turns, another one first in each round, and what is shown is the median over the rounds, its ratio to one
process and the spread. All answer the same question greedily in float32 with one thread per process, and the answers
are compared, so that nobody is fast by computing something else.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import (
    THREADS,
    Answer,
    Contender,
    Nodes,
    OneProcess,
    Prompter,
    Task,
    Transformers,
)
from mesh.demo.demo_model import LICENSE_ID, demo_model_path
from mesh.errors import MeshError, UsageError
from mesh.publishing import pack_release
from mesh.weights.releases.release import Release
from mesh.weights.trust.signing import PrivateKey, TrustRoot

QUESTION = "Write a long story about a lighthouse keeper and the sea."
_WARM_UP_TOKENS = 8
_BAR_WIDTH = 24


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. Exactly one of ``source`` (a checkpoint) and ``release`` (with ``trust``) is given."""

    source: Path | None
    release: Path | None
    trust: Path | None
    license_id: str  # of the release that is packed from ``source``, and never leaves this machine
    rounds: int
    tokens: int
    nodes: int


@dataclass(frozen=True, slots=True)
class Result:
    """One contender over all rounds."""

    name: str
    answers: tuple[Answer, ...]

    @property
    def speeds(self) -> list[float]:
        """Tokens per second after the first, round by round."""
        return [answer.tokens_per_second for answer in self.answers]

    @property
    def median(self) -> float:
        return statistics.median(self.speeds)

    def agrees_with(self, other: Result) -> bool:
        return {answer.text for answer in self.answers} == {answer.text for answer in other.answers}


@dataclass(frozen=True, slots=True)
class Report:
    setting: dict[str, Any]
    results: Sequence[Result]  # the first is what the others are measured against

    def ratio(self, result: Result) -> float:
        return result.median / self.results[0].median

    def to_json(self) -> dict[str, Any]:
        contenders = [
            {
                "name": each.name,
                "tokens_per_second": each.speeds,
                "median": each.median,
                "ratio": self.ratio(each),
                "same_answer": each.agrees_with(self.results[0]),
            }
            for each in self.results
        ]
        return {**self.setting, "contenders": contenders}

    def to_table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column()
        for heading in ("tokens/s", "ratio", "spread"):
            table.add_column(heading, justify="right")
        table.add_column("answer")
        table.add_column()
        best = max(each.median for each in self.results)
        for each in self.results:
            table.add_row(
                each.name,
                f"{each.median:.1f}",
                f"{self.ratio(each):.2f}",
                f"{min(each.speeds):.1f}–{max(each.speeds):.1f}",
                # transformers may leave the others' path at a near tie; one process and the mesh may not.
                "same" if each.agrees_with(self.results[0]) else "differs",
                "█" * round(_BAR_WIDTH * each.median / best),
            )
        return table


async def measure(plan: Plan, scratch: Path) -> Report:
    release, trust = _open(plan, scratch)
    prompter = Prompter.of(release)
    task = prompter.task(QUESTION, plan.tokens)
    async with AsyncExitStack() as stack:
        _say("loading one process")
        contenders: list[Contender] = [OneProcess(release, prompter)]
        _say(f"starting {plan.nodes} nodes")
        nodes = Nodes.running(release, trust, scratch, plan.nodes)
        contenders.append(await stack.enter_async_context(nodes))
        if plan.source is not None:  # transformers reads checkpoints, not releases
            _say("loading transformers")
            contenders.append(Transformers(plan.source, prompter))
        results = await take_turns(contenders, task, plan.rounds)
    setting = {
        "model": release.manifest.name,
        "stored": release.manifest.quantization,
        "computed": "float32",
        "threads_per_process": THREADS,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "prompt_tokens": len(task.prompt_ids),
        "new_tokens": results[0].answers[0].num_tokens,
        "rounds": plan.rounds,
    }
    return Report(setting, results)


async def take_turns(contenders: Sequence[Contender], task: Task, rounds: int) -> list[Result]:
    """One short answer from each to warm up, then ``rounds`` rounds, whoever begins changing."""
    answers: dict[str, list[Answer]] = {contender.name: [] for contender in contenders}
    for contender in contenders:
        await contender.answer(replace(task, max_tokens=_WARM_UP_TOKENS))
    for number in range(rounds):
        first = number % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            answers[contender.name].append(await contender.answer(task))
        speeds = ", ".join(f"{name} {given[-1].tokens_per_second:.1f}" for name, given in answers.items())
        _say(f"round {number + 1} of {rounds}: {speeds}")
    return [Result(name, tuple(given)) for name, given in answers.items()]


def _open(plan: Plan, scratch: Path) -> tuple[Release, Path]:
    """The release, given or packed here, and the file that says whose signature to believe."""
    if plan.source is None:
        assert plan.release is not None
        assert plan.trust is not None
        return Release.open(plan.release, TrustRoot.load(plan.trust)), plan.trust
    _say("packing the model")
    key, trust = PrivateKey.generate(), scratch / "publisher.pub"
    trust.write_bytes(TrustRoot.of(key.public).to_bytes())
    text = b"For a benchmark on this machine.\n" if plan.license_id.startswith("LicenseRef-") else None
    pack_release(plan.source, scratch / "release", plan.license_id, text, key)
    return Release.open(scratch / "release", TrustRoot.of(key.public)), trust


def _processor() -> str:
    """As the machine calls itself."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(
    model: Annotated[
        Path | None, typer.Option(help="A GGUF file or a Hugging Face directory. Default: the demo model.")
    ] = None,
    release: Annotated[Path | None, typer.Option(help="A packed release; transformers is left out.")] = None,
    trust: Annotated[Path | None, typer.Option(help="The trust root of --release.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each answers.")] = 3,
    tokens: Annotated[int, typer.Option(min=2, help="The longest answer, in tokens.")] = 64,
    nodes: Annotated[int, typer.Option(min=1, max=26, help="How many nodes share the layers.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Decode the same prompt with the same weights in one process, over nodes and with transformers."""
    torch.set_num_threads(THREADS)
    try:
        if (release is None) != (trust is None) or (release and model):
            raise UsageError("give --release and --trust together, or --model, or none of them")
        source = None if release else model or demo_model_path()
        license_id = "LicenseRef-benchmark" if model else LICENSE_ID
        plan = Plan(source, release, trust, license_id, rounds, tokens, nodes)
        with tempfile.TemporaryDirectory(prefix="llama-mesh-bench-") as scratch:
            report = asyncio.run(measure(plan, Path(scratch)))
    except MeshError as error:
        _say(f"error: {error}")
        raise typer.Exit(error.exit_code) from None
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(", ".join(f"{name} {value}" for name, value in report.setting.items()), soft_wrap=True)
    console.print(report.to_table())


if __name__ == "__main__":
    typer.run(main)
