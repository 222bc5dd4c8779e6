"""Tokens per second of one process, of a mesh of nodes on this machine and of ``transformers``, in one run.

    python -m benchmarks.decode                              # the demo model
    python -m benchmarks.decode model.gguf --rounds 7
    python -m benchmarks.decode release/ --trust publisher.pub --contenders one-process,transformers

A machine's speed drifts by some 15 % within minutes, so figures of different runs do not compare. Here the contenders
take turns, in another order each round, and what is quoted is the median over the rounds and its ratio to
``transformers``. All compute in float32; one process and every node use one thread unless told otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.contenders import Contender, Mesh, OneProcess, Prompt, Timing, Transformers
from mesh.demo.demo_model import LICENSE_ID, NAME, demo_model_path
from mesh.errors import MeshError, UsageError
from mesh.publishing import pack_release
from mesh.weights.release import MANIFEST_FILE, Release
from mesh.weights.signing import PrivateKey, TrustRoot

CONTENDERS = ("one-process", "mesh", "transformers")
REFERENCE = "transformers"
PROMPT = "Write a long story about a lighthouse keeper and the sea."


@dataclass(frozen=True, slots=True)
class Result:
    """One contender over all rounds."""

    name: str
    threads: str
    timings: tuple[Timing, ...]

    @property
    def tokens_per_second(self) -> float:
        return statistics.median(timing.tokens_per_second for timing in self.timings)

    @property
    def first_token_seconds(self) -> float:
        return statistics.median(timing.first_token_seconds for timing in self.timings)


async def take_turns(
    contenders: Sequence[Contender], prompt: Prompt, num_tokens: int, rounds: int
) -> list[Result]:
    """One answer from each to warm up, then ``rounds`` rounds, whoever begins changing."""
    timings: Mapping[str, list[Timing]] = {contender.name: [] for contender in contenders}
    for contender in contenders:
        await contender.generate(prompt, min(num_tokens, 8))
    for number in range(rounds):
        first = number % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            timings[contender.name].append(await contender.generate(prompt, num_tokens))
        _say(f"round {number + 1} of {rounds}: " + ", ".join(
            f"{name} {done[-1].tokens_per_second:.1f}" for name, done in timings.items()
        ))  # fmt: skip
    return [Result(each.name, each.threads, tuple(timings[each.name])) for each in contenders]


def table(results: Sequence[Result]) -> str:
    """For people: medians, their spread, and the ratio to the reference if it took part."""
    reference = next((each.tokens_per_second for each in results if each.name == REFERENCE), None)
    lines = [f"{'':14}{'threads':>8}  {'first token':>11}  {'tokens/s':>8}  {'min–max':>13}  {'ratio':>6}"]
    for each in results:
        speeds = [timing.tokens_per_second for timing in each.timings]
        ratio = f"{each.tokens_per_second / reference:.2f}" if reference else "–"
        spread = f"{min(speeds):.1f}–{max(speeds):.1f}"
        lines.append(
            f"{each.name:14}{each.threads:>8}  {each.first_token_seconds:>9.2f} s  {each.tokens_per_second:>8.1f}  "
            f"{spread:>13}  {ratio:>6}"
        )
    return "\n".join(lines)


@contextlib.asynccontextmanager
async def entered(
    names: Sequence[str], release: Release, trust: Path, scratch: Path, num_nodes: int, kv_tokens: int
) -> AsyncIterator[list[Contender]]:
    async with contextlib.AsyncExitStack() as stack:
        found: list[Contender] = []
        for name in names:
            _say(f"starting {name}")
            if name == "one-process":
                found.append(OneProcess(release))
            elif name == "transformers":
                found.append(Transformers(release))
            else:
                mesh = Mesh.running(release, trust, scratch, num_nodes, kv_tokens)
                found.append(await stack.enter_async_context(mesh))
        yield found


def opened(source: Path | None, trust: Path | None, scratch: Path) -> tuple[Release, Path]:
    """The release to measure and its trust root: a packed one, or one packed here from a checkpoint."""
    if source is not None and (source / MANIFEST_FILE).exists():
        if trust is None:
            raise UsageError(f"{source} is a release: say with --trust FILE whose signature to believe")
        return Release.open(source, TrustRoot.load(trust)), trust
    key, trust, packed = PrivateKey.generate(), scratch / "publisher.pub", scratch / "release"
    trust.write_bytes(TrustRoot.of(key.public).to_bytes())
    _say("packing the model")
    name = NAME if source is None else None
    pack_release(source or demo_model_path(), packed, LICENSE_ID, None, key, name=name)
    return Release.open(packed, TrustRoot.load(trust)), trust


async def measure(options: argparse.Namespace, scratch: Path) -> None:
    release, trust = opened(options.source, options.trust, scratch)
    prompt = Prompt.of(release, options.prompt)
    kv_tokens = len(prompt.ids) + options.tokens
    async with entered(
        options.contenders, release, trust, scratch, options.nodes, max(kv_tokens, 1024)
    ) as contenders:
        results = await take_turns(contenders, prompt, options.tokens, options.rounds)
    setting = {
        "model": release.manifest.name,
        "stored": release.manifest.quantization,
        "computed": "float32",
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "prompt_tokens": len(prompt.ids),
        "new_tokens": results[0].timings[0].num_tokens,
        "rounds": options.rounds,
    }
    if options.json:
        print(json.dumps(setting | {"results": [asdict(result) for result in results]}))
        return
    print("  ".join(f"{name} {value}" for name, value in setting.items()))
    print(table(results))


def processor() -> str:
    """As the machine calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if wrong := sorted(set(names) - set(CONTENDERS)):
        raise argparse.ArgumentTypeError(f"{wrong[0]!r}: expected some of {', '.join(CONTENDERS)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, help="GGUF file, Hugging Face or release directory; default: the demo model")  # fmt: skip
    parser.add_argument("--trust", type=Path, help="trust root of a release directory")
    parser.add_argument("--contenders", type=_names, default=list(CONTENDERS), help=",".join(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens per answer")
    parser.add_argument("--nodes", type=int, default=3, help="nodes of the mesh, one thread each")
    parser.add_argument("--threads", type=int, default=1, help="of one process and of transformers")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        with tempfile.TemporaryDirectory(prefix="llama-mesh-bench-") as scratch:
            asyncio.run(measure(options, Path(scratch)))
    except MeshError as error:
        _say(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
