"""What HTTP and the coordinator add to each token, beside the pipeline's own time.

    python -m benchmarks.overhead
    python -m benchmarks.overhead --streams 32 --json overhead.json

The real API in front of a pipeline that gives a token every ``PACE_SECONDS`` and notes when; clients in a process of their own
note when each chunk has arrived over loopback. Both read the same monotonic clock, so the difference is all that happens
to a token on its way: stop strings, detokenising, server-sent events, uvicorn, the socket and the client's reading of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from coordinator.access.admission import Admission
from coordinator.access.kv_ledger import KvLedger, Reservation
from coordinator.api import create_app
from coordinator.routing import Route, RouteStage
from coordinator.servers import serving_clients
from coordinator.serving import MeshHealth, ModelHealth, ServedModel
from coordinator.token_pipeline import Reroute, TokenRequest, TokenSession
from mesh.demo.demo_model import LICENSE_ID, demo_model_path
from mesh.layers import LayerRange
from mesh.model.logprobs import TokenLogprobs
from mesh.publishing import pack_release
from mesh.weights.releases.release import Release
from mesh.weights.trust.signing import PrivateKey, TrustRoot

PACE_SECONDS = 0.02  # 50 tokens per second, as a good mesh gives
ROUTE = Route((RouteStage("id", "node", "127.0.0.1", 1, LayerRange(0, 30), 1),))


class PacedPipeline:
    """Gives tokens of ordinary text at a steady pace and notes when each was given."""

    def __init__(self, text_ids: list[int]) -> None:
        self._ids = text_ids
        self.given: dict[str, list[float]] = {}

    @contextlib.asynccontextmanager
    async def session(
        self, request: TokenRequest, route: Route | None = None, reroute: Reroute | None = None
    ) -> AsyncIterator[TokenSession]:
        yield _PacedSession(self._ids, request, self.given.setdefault(request.request_id, []))


class _PacedSession:
    recoveries = 0
    route = ROUTE
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()

    def __init__(self, ids: list[int], request: TokenRequest, given: list[float]) -> None:
        self._ids, self._request, self._given = ids, request, given

    async def tokens(self) -> AsyncIterator[int]:
        began = time.monotonic()
        for number in range(self._request.max_new_tokens):
            await asyncio.sleep(max(0.0, began + number * PACE_SECONDS - time.monotonic()))
            self._given.append(time.monotonic())
            yield self._ids[number % len(self._ids)]


class _Room:
    def __init__(self) -> None:
        self._ledger = KvLedger()

    def check(self, tokens: int) -> None:
        pass

    def reserve(self, tokens: int, avoid: frozenset[str] = frozenset()) -> tuple[Route, Reservation]:
        return ROUTE, self._ledger.reserve(ROUTE.stages, tokens)

    def release(self, reservation: Reservation) -> None:
        self._ledger.release(reservation)


@dataclass(frozen=True, slots=True)
class Overhead:
    """Of every token of so many streams, in milliseconds."""

    streams: int
    milliseconds: tuple[float, ...]

    def quantile(self, share: float) -> float:
        return sorted(self.milliseconds)[min(int(share * len(self.milliseconds)), len(self.milliseconds) - 1)]

    def to_json(self) -> dict[str, Any]:
        return {
            "streams": self.streams,
            "tokens": len(self.milliseconds),
            "p50_ms": round(statistics.median(self.milliseconds), 3),
            "p95_ms": round(self.quantile(0.95), 3),
            "p99_ms": round(self.quantile(0.99), 3),
        }


async def measure(model: ServedModel, pipeline: PacedPipeline, streams: int, tokens: int) -> Overhead:
    async def nothing() -> None:
        pass

    health = MeshHealth((ModelHealth(model.name, (1,)),), 1)
    pipeline.given.clear()
    async with serving_clients(
        ("127.0.0.1", 0), create_app({model.name: model}, lambda: health), nothing
    ) as ((host, port), _):
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.overhead", "client", f"http://{host}:{port}", model.name,
            str(streams), str(tokens), stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        told, _ = await client.communicate()
    arrived: dict[str, list[float]] = json.loads(told)
    found = []
    for request_id, times in arrived.items():
        given = pipeline.given[request_id]
        assert len(times) == len(given), f"{len(times)} chunks of text for {len(given)} tokens"
        found += [(at - gave) * 1000 for at, gave in zip(times, given, strict=True)]
    return Overhead(streams, tuple(found))


async def _read_streams(url: str, model: str, streams: int, tokens: int) -> dict[str, list[float]]:
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:

        async def read(request_id: str) -> tuple[str, list[float]]:
            body = {"model": model, "prompt": "x", "max_tokens": tokens, "stream": True, "ignore_eos": True}
            times = []
            async with http.stream(
                "POST", "/v1/completions", json=body, headers={"x-request-id": request_id}
            ) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        now = time.monotonic()
                        if json.loads(line[6:])["choices"][0]["text"]:
                            times.append(now)
            return request_id, times

        return dict(await asyncio.gather(*(read(f"stream-{number}") for number in range(streams))))


def _served(scratch: Path) -> tuple[ServedModel, PacedPipeline]:
    from mesh.model.chat_template import ChatTemplate
    from mesh.model.tokenizer import Tokenizer
    from mesh.weights.shards.shard import read_shard

    key = PrivateKey.generate()
    pack_release(demo_model_path(), scratch / "release", LICENSE_ID, None, key)
    release = Release.open(scratch / "release", TrustRoot.of(key.public))
    ref = release.manifest.shard("aux")
    aux = read_shard(release.shard_path(ref), ref)
    tokenizer = Tokenizer.from_aux(aux)
    pipeline = PacedPipeline(tokenizer.encode(" the sea and the keeper of the light", add_special=False))
    model = ServedModel(
        release.manifest.name, release.manifest, tokenizer, ChatTemplate.from_aux(aux, tokenizer),
        pipeline, Admission(_Room()), 0,
    )  # fmt: skip
    return model, pipeline


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(hidden=True)
def client(url: str, model: str, streams: int, tokens: int) -> None:
    """The clients' process; prints when every chunk of text arrived."""
    sys.stdout.write(json.dumps(asyncio.run(_read_streams(url, model, streams, tokens))))


@app.command()
def run(
    streams: Annotated[int, typer.Option(min=1, help="Streams at the same time, after one alone.")] = 16,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each.")] = 200,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there too.")] = None,
) -> None:
    """Measure one stream, then several at the same time."""
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        model, pipeline = _served(Path(scratch))
        found = [asyncio.run(measure(model, pipeline, each, tokens)) for each in (1, streams)]
    table = Table(box=None, pad_edge=False)
    for heading in ("streams", "p50", "p95", "p99"):
        table.add_column(heading, justify="right")
    for each in found:
        table.add_row(str(each.streams), *(f"{each.quantile(share):.2f} ms" for share in (0.5, 0.95, 0.99)))
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps([each.to_json() for each in found]) + "\n")


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.argv.insert(1, "run")
    app()
