"""The demo's client: one question, streamed onto the console as it comes, and what there is to say of the answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_sse import aconnect_sse
from rich.console import Console

from mesh.errors import MeshError


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    num_tokens: int
    route: str
    recoveries: int  # stages that were lost on the way and replaced
    first_token_seconds: float
    tokens_per_second: float  # after the first


async def ask(
    console: Console,
    url: str,
    model: str,
    prompt: str,
    max_tokens: int,
    on_text: Callable[[str], None] = lambda text: None,
) -> Answer:
    """Greedily; ``on_text`` hears of each piece once it is shown. Raises MeshError if the answer breaks off."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    console.print(f"[bold]prompt[/bold]  {prompt}", markup=True)
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
                    on_text(text)
    ended = time.monotonic()
    console.print()
    tokens = last["usage"]["completion_tokens"]
    first = first or ended
    return Answer(
        text="".join(parts),
        num_tokens=tokens,
        route=last["mesh"]["route"],
        recoveries=last["mesh"]["recoveries"],
        first_token_seconds=first - began,
        tokens_per_second=(tokens - 1) / max(ended - first, 1e-9),
    )
