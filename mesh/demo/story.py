"""The whole mesh on one machine, every part real: what ``make demo`` shows.

Pack and sign a model, start a coordinator, a seeder and nodes as separate processes, let each node fetch only its own
layers over BitTorrent, ask a question through the OpenAI-compatible endpoint, and compare the answer with the one that
a single process gives. Everything lives in one scratch directory that is gone afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from httpx_sse import aconnect_sse
from rich.console import Console

from mesh.demo.demo_model import LICENSE_ID, NAME, demo_model_path
from mesh.demo.display import Display
from mesh.demo.processes import Event, children, command
from mesh.demo.splitting import memory_per_node
from mesh.dirs import cache_dir
from mesh.errors import MeshError, Unhealthy
from mesh.publishing import pack_release
from mesh.sizes import format_size
from mesh.weights.manifest import Manifest
from mesh.weights.signing import PrivateKey, TrustRoot

_START_SECONDS = 120.0  # generous: a cold disk and an old laptop
_FETCH_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    model: Path | None  # None: SmolLM2-135M-Instruct
    license_id: str
    license_text: bytes | None
    prompt: str
    max_tokens: int
    num_nodes: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    num_tokens: int
    route: str
    first_token_seconds: float
    tokens_per_second: float  # after the first


def run_demo(options: DemoOptions) -> int:
    """Exit code 0, or 128 + signal. Raises Unhealthy if the mesh and one process disagree, MeshError otherwise."""
    console = Console(highlight=False)
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="demo-") as scratch, _termination_as_exit():
        source = options.model or _obtain(console)
        release, trust = Path(scratch) / "release", Path(scratch) / "publisher.pub"
        manifest = _pack(console, source, release, trust, options)
        answer = asyncio.run(_serve_and_ask(console, release, trust, manifest, Path(scratch), options))
        _compare(console, release, trust, answer, options)
    return 0


def _obtain(console: Console) -> Path:
    with console.status("fetching the demo model (98 MB, once)"):
        path = demo_model_path()
    console.print(f"[bold]model[/bold]   {path.name}, {format_size(path.stat().st_size)}")
    return path


def _pack(console: Console, source: Path, release: Path, trust: Path, options: DemoOptions) -> Manifest:
    """Publish: shards, torrent, manifest, signature by a key made for the occasion."""
    key = PrivateKey.generate()
    trust.write_bytes(TrustRoot.of(key.public).to_bytes())
    began = time.monotonic()
    with Display(console) as display:
        manifest = pack_release(
            source,
            release,
            license_id=options.license_id,
            license_text=options.license_text,
            key=key,
            name=NAME if options.model is None else None,
            progress=display.packing,
        )
    console.print(
        f"[bold]packed[/bold]  {manifest.name}: {len(manifest.shards)} shards, {format_size(manifest.total_bytes)}, "
        f"signed by {key.public.key_id} in {time.monotonic() - began:.1f} s"
    )
    return manifest


async def _serve_and_ask(
    console: Console, release: Path, trust: Path, manifest: Manifest, scratch: Path, options: DemoOptions
) -> Answer:
    memory = memory_per_node(manifest.config, options.num_nodes, options.kv_tokens)
    logs = scratch / "logs"
    logs.mkdir()
    with Display(console) as display:
        async with children(logs, display.on_event) as start:
            coordinator = await start(
                "coordinator",
                [command("mesh-coordinator"), "up", "--release", str(release), "--trust", str(trust), "--json",
                 "--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--data", str(scratch / "coordinator")],
            )  # fmt: skip
            listening = await coordinator.event("listening", within_seconds=_START_SECONDS)
            meet = [listening["grpc"], "--token", listening["token"]]
            await start(
                "seeder",
                [command("mesh"), "seed", str(release), "--trust", str(trust), "--json",
                 "--coordinator", meet[0], *meet[1:]],
            )  # fmt: skip
            nodes = []
            for index in range(options.num_nodes):
                name = f"node-{chr(ord('a') + index)}"
                nodes.append(
                    await start(
                        name,
                        [command("mesh-node"), "join", *meet, "--yes", "--json", "--name", name, "--device", "cpu",
                         "--threads", "1", "--memory", str(memory), "--kv-tokens", str(options.kv_tokens),
                         "--data", str(scratch / name)],
                    )
                )  # fmt: skip
                # One after the other, so that the names follow the layers; fetching and loading overlap.
                await nodes[-1].event("plan", within_seconds=_START_SECONDS)
            for node in nodes:
                await node.event("ready", within_seconds=_FETCH_SECONDS)
            display.stop()
            _print_fetched(console, [(n.name, await n.event("plan", within_seconds=1), await n.event("fetched", within_seconds=1)) for n in nodes])  # fmt: skip
            url = f"http://{listening['http']}"
            await _until_ready(url)
            answer = await _ask(console, url, manifest.name, options)
            console.print(f"[bold]route[/bold]   {answer.route}")
            console.print(
                f"[bold]speed[/bold]   first token after {answer.first_token_seconds:.2f} s, "
                f"then {answer.tokens_per_second:.1f} tokens/s"
            )
    return answer


def _print_fetched(console: Console, nodes: list[tuple[str, Event, Event]]) -> None:
    for name, plan, fetched in nodes:
        console.print(
            f"[bold]{name}[/bold]  layers {plan['layers']:>6}: {plan['shards']} shards of {format_size(plan['download_bytes'])}; "
            f"fetched {format_size(fetched['payload_bytes'])} over BitTorrent in {fetched['seconds']:.1f} s, "
            f"{format_size(fetched['redundant_bytes'])} redundant"
        )


async def _until_ready(url: str) -> None:
    """A node says ready a heartbeat before the coordinator has heard it."""
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client, asyncio.timeout(_START_SECONDS):
        while (await client.get("/health")).status_code != 200:
            await asyncio.sleep(0.05)


async def _ask(console: Console, url: str, model: str, options: DemoOptions) -> Answer:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": options.prompt}],
        "max_tokens": options.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    console.print(f"[bold]prompt[/bold]  {options.prompt}", markup=True)
    console.print("[bold]answer[/bold]  ", end="")
    parts: list[str] = []
    last: dict[str, Any] = {}
    began = time.monotonic()
    first = None
    async with (
        httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(300.0), trust_env=False) as client,
        aconnect_sse(client, "POST", "/v1/chat/completions", json=body) as events,
    ):
        if events.response.status_code != 200:
            await events.response.aread()
            raise MeshError(f"the coordinator refused the request: {events.response.text}")
        async for event in events.aiter_sse():
            if event.data == "[DONE]":
                break
            chunk = json.loads(event.data)
            if "error" in chunk:
                raise MeshError(f"the answer broke off: {chunk['error']['message']}")
            last = {**last, **{key: chunk[key] for key in ("mesh", "usage") if chunk.get(key)}}
            for choice in chunk["choices"]:
                if text := choice["delta"].get("content"):
                    first = first or time.monotonic()
                    parts.append(text)
                    console.print(text, end="", markup=False, soft_wrap=True)
    ended = time.monotonic()
    console.print()
    tokens = last["usage"]["completion_tokens"]
    first = first or ended
    return Answer(
        text="".join(parts),
        num_tokens=tokens,
        route=last["mesh"]["route"],
        first_token_seconds=first - began,
        tokens_per_second=(tokens - 1) / max(ended - first, 1e-9),
    )


def _compare(console: Console, release: Path, trust: Path, answer: Answer, options: DemoOptions) -> None:
    """The same question to one process that holds all layers: same kernel, one thread, same chunking, same tokens."""
    from mesh.demo.reference import one_process_answer

    with console.status("asking one process that holds all layers"):
        text, num_tokens = one_process_answer(release, TrustRoot.load(trust), options.prompt, options.max_tokens)
    if (text, num_tokens) != (answer.text, answer.num_tokens):
        console.print(f"[bold red]differs[/bold red] one process says: {text}")
        raise Unhealthy("the mesh and one process gave different answers")
    console.print(f"[bold green]equal[/bold green]   to the answer of one process ({num_tokens} tokens)")


@contextlib.contextmanager
def _termination_as_exit() -> Iterator[None]:
    """SIGTERM unwinds the stack like Ctrl-C does, so that children and scratch files go either way."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
