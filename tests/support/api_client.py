"""The HTTP side without a socket: an httpx client straight into the app, and a reader of its streams."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from coordinator.api import create_app
from coordinator.serving import MeshHealth
from coordinator.token_pipeline import TokenPipeline
from tests.support.served_model import health, served_model


def app_for(pipeline: TokenPipeline, now: MeshHealth | None = None, *, context_length: int = 512) -> FastAPI:
    model = served_model(pipeline, context_length=context_length)
    return create_app({model.name: model}, lambda: now or health(1, 1, 1, 1))


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://mesh") as client:
        yield client


def chat(**fields: Any) -> dict[str, Any]:
    """The body of a request; by default a short greeting."""
    return {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, **fields}


def events_of(text: str) -> list[Any]:
    """The data of every event of a stream, parsed but for ``[DONE]``; comments are left out."""
    datas = [block.removeprefix("data: ") for block in text.split("\n\n") if block.startswith("data: ")]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]
