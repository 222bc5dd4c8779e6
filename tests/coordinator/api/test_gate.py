"""The gate: who may ask, what they are told when they may not, and that nobody gets past it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from coordinator.access.api_keys import KeyRecord, Limits, Scope, create_key
from coordinator.access.callers import Callers
from coordinator.api import create_app
from coordinator.api.gate import OPEN_PATHS
from tests.support.api_client import chat, client_of
from tests.support.clock import ManualClock
from tests.support.fake_pipeline import FakePipeline
from tests.support.served_model import health, served_model


class Keys:
    def __init__(self) -> None:
        self.records: list[KeyRecord] = []

    async def add_key(self, record: KeyRecord) -> None:
        self.records.append(record)

    async def keys(self) -> list[KeyRecord]:
        return self.records

    async def new(
        self,
        limits: Limits | None = None,
        scopes: tuple[Scope, ...] = tuple(Scope),
        models: tuple[str, ...] = (),
    ) -> dict[str, str]:
        """The headers of a client that has a new key."""
        key, _ = await create_key(self, "", 0.0, limits=limits, scopes=scopes, models=models)
        return {"authorization": f"Bearer {key}"}


@asynccontextmanager
async def gated(keys: Keys, pipeline: FakePipeline | None = None) -> AsyncIterator[httpx.AsyncClient]:
    models = {name: served_model(pipeline or FakePipeline(b"ab"), name=name) for name in ("tiny", "other")}
    app = create_app(models, lambda: health(1, 1, 1, 1), Callers(keys, ManualClock()))
    async with client_of(app) as client:
        yield client


async def test_every_route_but_health_asks_for_a_key() -> None:
    keys = Keys()
    await keys.new()
    async with gated(keys) as client:
        paths = (await client.get("/openapi.json", headers=await keys.new())).json()["paths"]
        for path, methods in paths.items():
            for method in methods:
                response = await client.request(method, path.replace("{name}", "tiny"))
                if path in OPEN_PATHS:
                    assert response.status_code != 401
                    continue
                assert response.status_code == 401, (method, path)
                assert response.headers["www-authenticate"] == "Bearer"
                assert response.headers["x-request-id"]
        hidden = await client.get("/openapi.json")
        assert hidden.status_code == 401
        assert hidden.json()["error"]["code"] == "invalid_api_key"
        assert hidden.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
async def test_a_key_opens_the_gate_as_openai_and_as_anthropic_send_it(header: str) -> None:
    keys = Keys()
    bearer = (await keys.new())["authorization"]
    value = bearer if header == "authorization" else bearer.removeprefix("Bearer ")
    async with gated(keys) as client:
        response = await client.post("/v1/chat/completions", json=chat(), headers={header: value})
        assert response.status_code == 200
        assert response.json()["choices"][0]["message"]["content"] == "ab"


@pytest.mark.parametrize(
    "value", ["Basic abc", "Bearer", "Bearer ", "Bearer sk-mesh-" + "a" * 43, "sk-mesh-x"]
)
async def test_a_wrong_key_is_a_401_that_does_not_repeat_it(value: str) -> None:
    keys = Keys()
    await keys.new()
    async with gated(keys) as client:
        response = await client.post("/v1/chat/completions", json=chat(), headers={"authorization": value})
        assert response.status_code == 401
        assert "a" * 43 not in response.text


async def test_a_scope_that_is_missing_is_a_403() -> None:
    keys = Keys()
    inspect = await keys.new(scopes=(Scope.INSPECT,))
    async with gated(keys) as client:
        assert (await client.get("/v1/models", headers=inspect)).status_code == 200
        response = await client.post("/v1/chat/completions", json=chat(), headers=inspect)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "insufficient_scope")
        assert response.json()["error"]["type"] == "permission_error"


async def test_a_key_sees_and_uses_its_own_models_only() -> None:
    keys = Keys()
    headers = await keys.new(models=("other",))
    async with gated(keys) as client:
        listed = (await client.get("/v1/models", headers=headers)).json()["data"]
        assert [model["id"] for model in listed] == ["other"]
        response = await client.post("/v1/chat/completions", json=chat(), headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
        assert "tiny" not in response.json()["error"]["message"].partition("serves:")[2]
        assert (await client.post("/tokenize", json={"content": "a"}, headers=headers)).status_code == 200


async def test_requests_past_the_quota_are_429_with_the_seconds_to_wait_and_limits_are_told() -> None:
    keys = Keys()
    headers = await keys.new(Limits(requests_per_minute=2, tokens_per_minute=1000))
    async with gated(keys) as client:
        first = await client.post("/v1/chat/completions", json=chat(), headers=headers)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-reset-requests"] == "30000ms"
        assert first.headers["x-ratelimit-limit-tokens"] == "1000"
        await client.get("/v1/models", headers=headers)
        refused = await client.post("/v1/chat/completions", json=chat(), headers=headers)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "30"
        assert refused.headers["x-ratelimit-limit-requests"] == "2"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.headers["x-ratelimit-remaining-tokens"]
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert refused.json()["error"]["type"] == "rate_limit_error"


async def test_a_request_that_no_waiting_helps_is_not_tried_again() -> None:
    keys = Keys()
    headers = await keys.new(Limits(tokens_per_minute=10))
    async with gated(keys) as client:
        refused = await client.post("/v1/chat/completions", json=chat(max_tokens=100), headers=headers)
        assert refused.status_code == 429
        assert refused.headers["x-should-retry"] == "false"
        assert "retry-after" not in refused.headers


async def test_streams_at_the_same_time_are_counted_and_a_finished_one_makes_room() -> None:
    keys, pipeline = Keys(), FakePipeline(b"ab", park_at=1)
    headers = await keys.new(Limits(streams=1))
    async with gated(keys, pipeline) as client:
        import asyncio

        first = asyncio.create_task(client.post("/v1/chat/completions", json=chat(), headers=headers))
        await pipeline.parked.wait()
        second = await client.post("/v1/chat/completions", json=chat(), headers=headers)
        assert (second.status_code, second.headers["retry-after"]) == (429, "1")
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        pipeline.resume.set()
        assert (await first).status_code == 200
        assert (await client.post("/v1/chat/completions", json=chat(), headers=headers)).status_code == 200


async def test_one_keys_quota_is_not_anothers() -> None:
    keys = Keys()
    one, other = await keys.new(Limits(requests_per_minute=1)), await keys.new(Limits(requests_per_minute=1))
    async with gated(keys) as client:
        for headers in (one, other):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
            assert (await client.get("/v1/models", headers=headers)).status_code == 429
