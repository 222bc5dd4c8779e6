"""Two hundred streams at once through real processes: all whole, all as if alone, and nobody waits for a flood."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from mesh.demo.local_mesh import local_mesh
from mesh.demo.processes import command
from tests.support.releases import pack_tiny

FLOOD, POLITE, TOKENS = 190, 10, 12
KV_TOKENS = 256  # of some 20 tokens each, a dozen fit at once: the rest has to wait its turn
PROMPTS = ("hello", "a torrent", "the sea")


@dataclass(frozen=True)
class Streamed:
    who: str
    prompt: str
    ids: tuple[str, ...]
    ended: float  # monotonic seconds


def make_key(data: Path, label: str) -> str:
    made = subprocess.run(
        [command("mesh-coordinator"), "key", "create", "--label", label, "--data", str(data)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return made.stdout.strip()


async def stream(client: httpx.AsyncClient, model: str, who: str, key: str, prompt: str) -> Streamed:
    ids: list[str] = []
    body = {
        "model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": True,
        "ignore_eos": True, "logprobs": 0,
    }  # fmt: skip
    async with client.stream(
        "POST", "/v1/completions", json=body, headers={"authorization": f"Bearer {key}"}
    ) as response:
        assert response.status_code == 200, await response.aread()
        lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]", lines[-1]
    for line in lines[:-1]:
        choice = json.loads(line[6:])["choices"][0]
        if choice["logprobs"]:
            ids += choice["logprobs"]["tokens"]
    return Streamed(who, prompt, tuple(ids), time.monotonic())


async def test_two_hundred_streams_are_all_whole_and_a_flood_does_not_starve_another_key(
    tmp_path: Path,
) -> None:
    packed = pack_tiny(tmp_path / "packed")
    scratch = tmp_path / "scratch"
    async with (
        local_mesh(
            packed.directory,
            packed.trust_file,
            packed.manifest,
            scratch,
            num_nodes=2,
            kv_tokens=KV_TOKENS,
            engine="auto",
        ) as mesh,
        httpx.AsyncClient(
            base_url=mesh.url, timeout=120, trust_env=False, limits=httpx.Limits(max_connections=None)
        ) as client,
    ):
        flood, polite = await asyncio.gather(
            *(asyncio.to_thread(make_key, scratch / "coordinator", label) for label in ("flood", "polite"))
        )
        await asyncio.sleep(1.1)  # a running coordinator reads its keys once a second
        alone = {prompt: (await stream(client, "tiny", "alone", polite, prompt)).ids for prompt in PROMPTS}
        asked = [
            asyncio.create_task(stream(client, "tiny", "flood", flood, PROMPTS[number % 3]))
            for number in range(FLOOD)
        ]
        await asyncio.sleep(0.2)  # they are in line first
        asked += [
            asyncio.create_task(stream(client, "tiny", "polite", polite, PROMPTS[number % 3]))
            for number in range(POLITE)
        ]
        async with asyncio.timeout(90):
            answers = await asyncio.gather(*asked)
        health = (await client.get("/health")).json()

    assert health["status"] == "ok"
    assert all(len(answer.ids) == TOKENS for answer in answers)
    assert [answer for answer in answers if answer.ids != alone[answer.prompt]] == []
    # Served in the order they came, the polite would be the last of all.
    last_of_polite = max(answer.ended for answer in answers if answer.who == "polite")
    later = sum(answer.ended > last_of_polite for answer in answers if answer.who == "flood")
    assert later >= FLOOD // 2
