"""Act two of the demo: a node is killed in the middle of an answer, and nobody who reads the answer can tell.

A spare joins for the layers of a node in the middle; the question of act one is asked again; when half of the answer is
there, that node is killed as the kernel kills, without a word. The answer must be the one of act one.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from dataclasses import dataclass

from rich.console import Console

from mesh.demo.asking import Answer, ask
from mesh.demo.local_mesh import FETCH_SECONDS, LocalMesh
from mesh.layers import LayerRange


@dataclass(frozen=True, slots=True)
class Survival:
    victim: str
    spare: str
    answer: Answer
    longest_pause_seconds: float  # between two pieces of text, as the client saw it


async def survive(
    console: Console, mesh: LocalMesh, model: str, prompt: str, max_tokens: int, expected: Answer
) -> Survival:
    """Raises MeshError if the answer breaks off."""
    victim = mesh.nodes[len(mesh.nodes) // 2]
    plan = victim.seen["plan"]
    layers = LayerRange.parse(plan["layers"])
    with console.status(f"a spare for layers {layers} joins"):
        spare = await mesh.start_spare("spare", layers, plan["memory_bytes"])
        await spare.event("ready", within_seconds=FETCH_SECONDS)
    console.print(f"[bold]spare[/bold]   serves layers {layers} too")
    kill_at = max(1, len(expected.text) // 2)
    seen, times, killed = 0, [time.monotonic()], False

    def on_text(text: str) -> None:
        nonlocal seen, killed
        seen += len(text)
        times.append(time.monotonic())
        if seen >= kill_at and not killed:
            killed = True
            os.kill(victim.pid, signal.SIGKILL)
            console.print(f" [bold red]\\[{victim.name} killed][/bold red] ", end="")

    answer = await ask(console, mesh.url, model, prompt, max_tokens, on_text)
    pauses = [
        after - before for before, after in itertools.pairwise(times[1:])
    ]  # the first token is no pause
    return Survival(victim.name, spare.name, answer, max(pauses, default=0.0))
