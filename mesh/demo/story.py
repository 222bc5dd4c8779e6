"""The whole mesh on one machine, every part real: what ``make demo`` shows.

Pack and sign a model, start a coordinator, a seeder and nodes as separate processes, let each node fetch only its own
layers over BitTorrent, ask a question through the OpenAI-compatible endpoint, and compare the answer with the one that
a single process gives; in between ask once more and kill a node in the middle of the answer. Everything lives in one scratch directory that is gone afterwards.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mesh.demo.act_two import Survival, survive
from mesh.demo.asking import Answer, ask
from mesh.demo.demo_model import NAME, demo_model_path
from mesh.demo.display import Display
from mesh.demo.local_mesh import local_mesh
from mesh.demo.processes import Event
from mesh.dirs import cache_dir
from mesh.errors import Unhealthy
from mesh.publishing import pack_release
from mesh.sizes import format_size
from mesh.stopping import run_until_signal
from mesh.weights.trust.manifest import Manifest
from mesh.weights.trust.signing import PrivateKey, TrustRoot


@dataclass(frozen=True, slots=True)
class DemoOptions:
    model: Path | None  # None: SmolLM2-135M-Instruct
    license_id: str
    license_text: bytes | None
    prompt: str
    max_tokens: int
    num_nodes: int
    kv_tokens: int
    engine: str


@dataclass(frozen=True, slots=True)
class Acts:
    """The answer of the undisturbed mesh, and how it went when a node was killed; None if there was none to spare."""

    answer: Answer
    survival: Survival | None


def run_demo(options: DemoOptions) -> int | None:
    """None when all went well, 128 + signal if stopped. Raises Unhealthy if the mesh and one process disagree."""
    console = Console(highlight=False, soft_wrap=True)
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="demo-") as scratch:
        source = options.model or _obtain(console)
        release, trust = Path(scratch) / "release", Path(scratch) / "publisher.pub"
        manifest = _pack(console, source, release, trust, options)
        played: list[Acts] = []

        async def serve_and_ask() -> None:
            played.append(await _serve_and_ask(console, release, trust, manifest, Path(scratch), options))

        # The children are stopped within a bound of their own; a second Ctrl-C must not leave them behind.
        stopped = run_until_signal(serve_and_ask(), second_forces=False)
        if stopped is None:
            _compare(console, release, trust, played[0].answer, options)
            _compare_acts(console, played[0], options)
        return stopped


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
) -> Acts:
    """Start the mesh, say what each node fetched, ask, ask again while a node is killed, stop the mesh."""
    with Display(console) as display:
        async with local_mesh(
            release,
            trust,
            manifest,
            scratch,
            num_nodes=options.num_nodes,
            kv_tokens=options.kv_tokens,
            engine=options.engine,
            on_event=display.on_event,
        ) as mesh:
            display.stop()
            for node in mesh.nodes:
                _print_fetched(console, node.name, node.seen["plan"], node.seen["fetched"])
            answer = await ask(console, mesh.url, manifest.name, options.prompt, options.max_tokens)
            console.print(f"[bold]route[/bold]   {answer.route}")
            console.print(
                f"[bold]speed[/bold]   first token after {answer.first_token_seconds:.2f} s, "
                f"then {answer.tokens_per_second:.1f} tokens/s"
            )
            survival = None
            if options.num_nodes > 1 and answer.num_tokens > 3:
                survival = await survive(
                    console, mesh, manifest.name, options.prompt, options.max_tokens, answer
                )
    return Acts(answer, survival)


def _print_fetched(console: Console, name: str, plan: Event, fetched: Event) -> None:
    console.print(
        f"[bold]{name}[/bold]  layers {plan['layers']:>6}: {plan['shards']} shards of "
        f"{format_size(plan['download_bytes'])}; fetched {format_size(fetched['payload_bytes'])} over BitTorrent "
        f"in {fetched['seconds']:.1f} s, {format_size(fetched['redundant_bytes'])} redundant"
    )


def _compare(console: Console, release: Path, trust: Path, answer: Answer, options: DemoOptions) -> None:
    """The same question to one process that holds all layers: same kernel, one thread, same chunking, same tokens."""
    from mesh.demo.reference import one_process_answer

    with console.status("asking one process that holds all layers"):
        text, num_tokens = one_process_answer(
            release, TrustRoot.load(trust), options.prompt, options.max_tokens, engine=options.engine
        )
    if (text, num_tokens) != (answer.text, answer.num_tokens):
        console.print(f"[bold red]differs[/bold red] one process says: {text}")
        raise Unhealthy("the mesh and one process gave different answers")
    console.print(f"[bold green]equal[/bold green]   to the answer of one process ({num_tokens} tokens)")


def _compare_acts(console: Console, acts: Acts, options: DemoOptions) -> None:
    """Native stages promise the same bits; float32 by torch may part where two tokens nearly tie, and says so."""
    survival = acts.survival
    if survival is None:
        return
    told = f"{survival.victim} was killed"
    if survival.answer.recoveries:
        told += f", the longest pause was {survival.longest_pause_seconds:.2f} s"
    else:
        told += ", which had done its part by then"
    if survival.answer.text == acts.answer.text:
        console.print(f"[bold green]equal[/bold green]   although {told}")
        return
    console.print(f"[bold yellow]differs[/bold yellow] after {told}: two tokens nearly tied in float32")
    if options.engine == "native":
        raise Unhealthy("the answer changed when a node was replaced")
