"""The coordinator's listening sides: what clients and nodes see when it stops, or cannot start."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest

from coordinator.servers import serving_clients, serving_grpc
from coordinator.token_pipeline import PipelineLost
from mesh.errors import MeshError
from mesh.wire import coordinator_pb2_grpc, generation_pb2_grpc
from tests.support.api_client import app_for, chat
from tests.support.fake_pipeline import FakePipeline
from tests.support.served_model import health

LOOPBACK = ("127.0.0.1", 0)


async def test_an_open_answer_is_told_of_the_end_and_nobody_new_gets_in() -> None:
    pipeline = FakePipeline(b"abcdef", park_at=3, fail_at=3)

    async def end_answers() -> None:
        pipeline.failure = PipelineLost("the coordinator is stopping")
        pipeline.resume.set()

    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        async with serving_clients(LOOPBACK, app_for(pipeline), end_answers) as ((host, port), _):
            url = f"http://{host}:{port}"
            request = client.build_request("POST", f"{url}/v1/chat/completions", json=chat(stream=True))
            answer = await client.send(request, stream=True)
            await pipeline.parked.wait()
        # the server has stopped; what it said last is still to be read
        lines = [line async for line in answer.aiter_lines() if line.startswith("data: ")]
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{url}/health")
    assert "the coordinator is stopping" in lines[-1]
    assert "data: [DONE]" not in lines
    assert pipeline.open_sessions == 0


async def test_stopping_does_not_wait_for_a_connection_that_is_idle() -> None:
    async def end_answers() -> None:
        pass

    async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(2):
        app = app_for(FakePipeline(b"a"))
        async with serving_clients(LOOPBACK, app, end_answers) as ((host, port), http):
            assert (await client.get(f"http://{host}:{port}/livez")).status_code == 200
        assert http.done()


@pytest.mark.parametrize("flag", ["--grpc", "--listen"])
async def test_a_port_in_use_is_refused_naming_the_address_and_the_flag(flag: str) -> None:
    async def end_answers() -> None:
        pass

    with socket.create_server(LOOPBACK) as taken:
        host, port = taken.getsockname()
        service = coordinator_pb2_grpc.CoordinatorServicer()
        door = (
            serving_grpc((host, port), service, generation_pb2_grpc.GenerationServicer(), lambda: health(1))
            if flag == "--grpc"
            else serving_clients((host, port), app_for(FakePipeline(b"")), end_answers)
        )
        with pytest.raises(MeshError, match=rf"{host}:{port}: the port is in use; .*{flag}"):
            await door.__aenter__()
