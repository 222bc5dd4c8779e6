"""What holds for every route: ids, one shape of errors, bounded bodies; and the routes that list and tell."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from coordinator.api import create_app
from coordinator.api.middleware import MAX_BODY_BYTES
from coordinator.serving import MeshHealth, ModelHealth
from mesh.layers import LayerRange
from tests.support.api_client import app_for, chat, client_of
from tests.support.fake_pipeline import FakePipeline
from tests.support.served_model import health, served_model


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app_for(FakePipeline(b"a"))) as client:
        yield client


# -- errors


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v2/nothing", None, 404, "not_found"),
        ("POST", "/v1/chat/completions/", b"{}", 404, "not_found"),
        ("GET", "/v1/chat/completions", None, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", None, 405, "method_not_allowed"),
        ("GET", "/v1/models/absent/one", None, 404, "model_not_found"),
        ("POST", "/v1/chat/completions", b'{"model": ', 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"\xff\xfe", 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"[" * 100_000, 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"9" * 10_000, 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"[]", 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"", 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"{}", 400, "invalid_value"),
        ("POST", "/v1/chat/completions", b" " * (MAX_BODY_BYTES + 1), 413, "request_too_large"),
    ],
    ids=lambda value: repr(value)[:24],
)
async def test_every_error_has_the_four_keys_and_an_id(
    client: httpx.AsyncClient, method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    response = await client.request(method, path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert error["message"]
    assert response.headers["x-request-id"].startswith("req_")


async def test_a_path_that_is_not_served_says_how_base_urls_end(client: httpx.AsyncClient) -> None:
    response = await client.post("/chat/completions", json=chat())
    assert "ends in /v1" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/health", "/v1/health", "/livez", "/readyz", "/v1/models", "/v1/models/tiny"]
)
async def test_head_tells_what_get_would(client: httpx.AsyncClient, path: str) -> None:
    head, got = await client.head(path), await client.get(path)
    assert head.status_code == got.status_code == 200
    assert head.headers["content-type"] == got.headers["content-type"]


async def test_a_refused_method_names_those_that_are_allowed(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/chat/completions")
    assert response.headers["allow"] == "POST"


async def test_a_body_that_grows_too_long_is_refused_while_it_comes(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100 * MAX_BODY_BYTES:
            sent += 1 << 20
            yield b" " * (1 << 20)

    response = await client.post(
        "/v1/chat/completions", content=endless(), headers={"content-type": "application/json"}
    )
    assert response.status_code == 413
    assert sent <= MAX_BODY_BYTES + (1 << 20)


async def test_a_web_page_cannot_post_to_a_mesh_on_this_machine(client: httpx.AsyncClient) -> None:
    """A browser sends text/plain across origins without asking; JSON it has to ask for, and nobody answers that."""
    plain = await client.post(
        "/v1/chat/completions", content=httpx.Request("POST", "http://x", json=chat()).content
    )
    assert (plain.status_code, plain.json()["error"]["code"]) == (400, "invalid_json")
    asked = await client.options(
        "/v1/chat/completions",
        headers={"origin": "https://evil.example", "access-control-request-method": "POST"},
    )
    assert asked.status_code == 405
    assert not any(name.startswith("access-control") for name in asked.headers)


# -- request ids


async def test_a_sane_request_id_of_the_client_is_kept(client: httpx.AsyncClient) -> None:
    response = await client.get("/livez", headers={"x-request-id": "abc-123"})
    assert response.headers["x-request-id"] == "abc-123"


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"two words", b"caf\xe9", b"tab\tbed"])
async def test_an_odd_request_id_is_replaced(client: httpx.AsyncClient, given: bytes) -> None:
    response = await client.get("/livez", headers=[(b"x-request-id", given)])
    assert response.headers["x-request-id"].startswith("req_")


# -- models


async def test_models_are_listed_as_openai_clients_read_them(client: httpx.AsyncClient) -> None:
    body = (await client.get("/v1/models")).json()
    assert body["object"] == "list"
    [model] = body["data"]
    assert (model["id"], model["object"], model["created"]) == ("tiny", "model", 1_750_000_000)
    assert model["owned_by"] == "llama-mesh"
    assert model["max_model_len"] == model["meta"]["n_ctx_train"] == 512
    assert model["mesh"]["license"] == "Apache-2.0"
    assert model["mesh"]["missing"] == []
    assert (await client.get("/v1/models/tiny")).json() == model


async def test_a_name_with_a_slash_is_found() -> None:
    model = served_model(FakePipeline(b""))
    async with client_of(create_app({"org/tiny": model}, lambda: health(1))) as client:
        assert (await client.get("/v1/models/org/tiny")).status_code == 200


# -- health


async def test_health_is_ok_when_every_layer_is_served(client: httpx.AsyncClient) -> None:
    response = await client.get("/health")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ok",
        "nodes": 2,
        "models": [{"id": "tiny", "ready": True, "layers": 4, "missing": [], "coverage": [1, 1, 1, 1]}],
    }


@pytest.mark.parametrize("now", [health(1, 0, 0, 2), MeshHealth((), nodes=0)])
async def test_health_is_503_while_layers_are_missing_and_the_process_lives_all_the_same(
    now: MeshHealth,
) -> None:
    async with client_of(app_for(FakePipeline(b""), now)) as client:
        response = await client.get("/health")
        assert (await client.get("/livez")).status_code == 200
        assert (await client.head("/health")).status_code == 503
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    body = response.json()
    assert (body["error"]["type"], body["error"]["code"]) == ("unavailable_error", "mesh_incomplete")
    assert [model["missing"] for model in body["models"]] == ([["1:3"]] if now.models else [])


def test_missing_layers_are_told_in_the_fewest_ranges() -> None:
    model = ModelHealth("m", (0, 0, 1, 0, 2, 0))
    assert model.missing == (LayerRange(0, 2), LayerRange(3, 4), LayerRange(5, 6))
    assert not model.is_ready
    assert not ModelHealth("m", ()).is_ready
    assert ModelHealth("m", (1, 2)).is_ready
    assert ModelHealth("m", (1, 2)).missing == ()


async def test_the_api_describes_itself(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert {"/v1/chat/completions", "/v1/models", "/health"} <= set(paths)
