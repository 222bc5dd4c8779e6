"""The stall a client sees when a stage is lost in the middle of its answer.

    python -m benchmarks.failover                       # SIGKILL and SIGSTOP, prompts of 128 and 1024 tokens
    python -m benchmarks.failover --trials 10 --prompts 128,1024,4096 --json failover.json

Three nodes and a spare for the middle one, as processes on this machine, native engine, one thread each. In each trial the
middle node is killed, or frozen, after some tokens of a streamed answer; the stall is the longest time between two of
its chunks. Beside it, in the same run: how long a client without recovery takes to be where it was, by asking again. Every
answer is compared with the undisturbed one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from httpx_sse import aconnect_sse
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import Prompter
from mesh.demo.demo_model import LICENSE_ID, demo_model_path
from mesh.demo.local_mesh import FETCH_SECONDS, LocalMesh, local_mesh
from mesh.demo.processes import Child
from mesh.errors import MeshError, Unhealthy
from mesh.layers import LayerRange
from mesh.publishing import pack_release
from mesh.weights.releases.release import Release
from mesh.weights.trust.signing import PrivateKey, TrustRoot

LOSE_AFTER = 16  # tokens
TOKENS = 48
KV_TOKENS = 16384
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP}


@dataclass(frozen=True, slots=True)
class Streamed:
    text: str
    arrivals: tuple[float, ...]  # monotonic seconds, of each chunk of text
    began: float
    recoveries: int

    @property
    def longest_gap(self) -> float:
        return max(after - before for before, after in zip(self.arrivals, self.arrivals[1:], strict=False))

    @property
    def seconds_to_lost_token(self) -> float:
        """From asking until as many tokens are there as had been when the stage was lost."""
        return self.arrivals[min(LOSE_AFTER, len(self.arrivals) - 1)] - self.began


@dataclass
class Setting:
    """One signal with one length of prompt, over all trials; seconds."""

    how: str
    prompt_tokens: int
    stalls: list[float] = field(default_factory=list)
    asked_again: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "signal": self.how,
            "prompt_tokens": self.prompt_tokens,
            "stall_seconds": [round(each, 3) for each in self.stalls],
            "median": round(statistics.median(self.stalls), 3),
            "worst": round(max(self.stalls), 3),
            "asking_again_median": round(statistics.median(self.asked_again), 3),
        }


class Fleet:
    """A mesh whose middle stage is served twice; whoever was lost is started again."""

    def __init__(self, mesh: LocalMesh, layers: LayerRange, memory_bytes: int) -> None:
        self._mesh, self._layers, self._memory_bytes = mesh, layers, memory_bytes
        self._count = 0
        self.serving: dict[str, Child] = {}  # the middle's, by name

    async def heal(self) -> None:
        while len(self.serving) < 2:
            self._count += 1
            name = f"middle-{self._count}"
            child = await self._mesh.start_spare(name, self._layers, self._memory_bytes)
            await child.event("ready", within_seconds=FETCH_SECONDS)
            self.serving[name] = child

    async def lose(self, route: str, number: signal.Signals) -> None:
        """The one that the answer passes; a frozen one is ended once the trial is over."""
        name = next(each for each in self.serving if f" {each}" in route)
        child = self.serving.pop(name)
        child.send_signal(number)
        if number is signal.SIGSTOP:
            self._frozen = child

    async def thaw(self) -> None:
        frozen, self._frozen = getattr(self, "_frozen", None), None
        if frozen is not None:
            os.kill(frozen.pid, signal.SIGKILL)
            await frozen.wait()


async def stream(
    client: httpx.AsyncClient, model: str, ids: list[int], on_chunk: Callable[[int], None]
) -> Streamed:
    body = {
        "model": model, "prompt": ids, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": True,
    }  # fmt: skip
    began, arrivals, parts, recoveries = time.monotonic(), [], [], 0
    async with aconnect_sse(client, "POST", "/v1/completions", json=body) as events:
        async for event in events.aiter_sse():
            if event.data == "[DONE]":
                break
            chunk = json.loads(event.data)
            if "error" in chunk:
                raise MeshError(f"the answer broke off: {chunk['error']['message']}")
            recoveries = chunk.get("mesh", {}).get("recoveries", recoveries)
            for choice in chunk["choices"]:
                if choice["text"]:
                    arrivals.append(time.monotonic())
                    parts.append(choice["text"])
                    on_chunk(len(arrivals))
    return Streamed("".join(parts), tuple(arrivals), began, recoveries)


async def measure(console: Console, trials: int, prompts: list[int], scratch: Path) -> list[Setting]:
    key = PrivateKey.generate()
    trust = scratch / "publisher.pub"
    trust.write_bytes(TrustRoot.of(key.public).to_bytes())
    pack_release(demo_model_path(), scratch / "release", LICENSE_ID, None, key, name="bench")
    release = Release.open(scratch / "release", TrustRoot.of(key.public))
    text_ids = Prompter.of(release).task("Tell of the sea. " * 1200, 1).prompt_ids
    settings = [Setting(how, length) for how in SIGNALS for length in prompts]
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(
            local_mesh(
                release.directory, trust, release.manifest, scratch / "mesh", num_nodes=3, kv_tokens=KV_TOKENS,
                engine="native",
            )
        )  # fmt: skip
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=mesh.url, timeout=300, trust_env=False)
        )
        plan = mesh.nodes[1].seen["plan"]
        fleet = Fleet(mesh, LayerRange.parse(plan["layers"]), plan["memory_bytes"])
        fleet.serving[mesh.nodes[1].name] = mesh.nodes[1]
        await fleet.heal()
        for trial in range(trials):
            for setting in settings:
                ids = list(text_ids[: setting.prompt_tokens])
                expected = await stream(client, "bench", ids, lambda count: None)
                setting.asked_again.append(expected.seconds_to_lost_token)
                await _one_trial(client, fleet, setting, ids, expected)
                console.print(
                    f"{setting.how} {setting.prompt_tokens:>5} tokens, trial {trial + 1}: "
                    f"stall {setting.stalls[-1]:.2f} s, asking again {setting.asked_again[-1]:.2f} s",
                    highlight=False,
                )
    return settings


async def _one_trial(
    client: httpx.AsyncClient, fleet: Fleet, setting: Setting, ids: list[int], expected: Streamed
) -> None:
    losing: list[asyncio.Task[None]] = []
    route = (await client.post(
        "/v1/completions", json={"model": "bench", "prompt": [1], "max_tokens": 1}
    )).json()["mesh"]["route"]  # fmt: skip

    def on_chunk(count: int) -> None:
        if count == LOSE_AFTER:
            losing.append(asyncio.create_task(fleet.lose(route, SIGNALS[setting.how])))

    answer = await stream(client, "bench", ids, on_chunk)
    await asyncio.gather(*losing)
    await fleet.thaw()
    await fleet.heal()
    if answer.text != expected.text:
        raise Unhealthy(f"{setting.how}: the answer changed when a stage was lost")
    if answer.recoveries:
        setting.stalls.append(answer.longest_gap)
    else:
        raise MeshError("the stage was lost and the answer did not pass it; run it again")


def _table(settings: list[Setting]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("signal", "prompt", "median stall", "worst", "asking again", "trials"):
        table.add_column(heading, justify="right")
    for each in settings:
        told = each.to_json()
        table.add_row(
            each.how, str(each.prompt_tokens), f"{told['median']:.2f} s", f"{told['worst']:.2f} s",
            f"{told['asking_again_median']:.2f} s", str(len(each.stalls)),
        )  # fmt: skip
    return table


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def run(
    trials: Annotated[int, typer.Option(min=1, help="Losses of each kind.")] = 5,
    prompts: Annotated[str, typer.Option(help="Tokens of the prompts.")] = "128,1024",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there too.")] = None,
) -> None:
    """Lose the middle stage of many answers, and measure what their clients see."""
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        lengths = [int(length) for length in prompts.split(",")]
        settings = asyncio.run(measure(console, trials, lengths, Path(scratch)))
    console.print(_table(settings))
    if json_file is not None:
        json_file.write_text(json.dumps([each.to_json() for each in settings]) + "\n")


if __name__ == "__main__":
    app()
