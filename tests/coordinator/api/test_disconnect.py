"""A client that goes away: over a real socket, whatever the answer was doing, the session is left at once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from coordinator.access.admission import Admission
from coordinator.api import create_app
from tests.support.api_client import app_for, chat
from tests.support.fake_pipeline import FakePipeline, FakeRoom
from tests.support.http_server import serving
from tests.support.served_model import health, served_model


async def open_request(url: str, **fields: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(chat(**fields)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    return reader, writer


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def left(pipeline: FakePipeline) -> None:
    async with asyncio.timeout(5):
        await pipeline.left.wait()
    assert pipeline.open_sessions == 0


async def test_hanging_up_in_the_middle_of_a_stream_leaves_the_session() -> None:
    pipeline = FakePipeline(b"abcdef", park_at=3)
    async with serving(app_for(pipeline)) as url:
        reader, writer = await open_request(url, stream=True)
        await reader.readuntil(b'"content":"c"')
        assert pipeline.open_sessions == 1
        await hang_up(writer)
        await left(pipeline)
    assert pipeline.tokens_given == 3


async def test_hanging_up_during_prefill_leaves_the_session() -> None:
    pipeline = FakePipeline(b"abcdef", park_at=0)
    async with serving(app_for(pipeline)) as url:
        _, writer = await open_request(url, stream=True)
        await pipeline.parked.wait()
        await hang_up(writer)
        await left(pipeline)
    assert pipeline.tokens_given == 0


async def test_hanging_up_on_a_whole_answer_leaves_the_session() -> None:
    pipeline = FakePipeline(b"abcdef", park_at=3)
    async with serving(app_for(pipeline)) as url:
        _, writer = await open_request(url, stream=False)
        await pipeline.parked.wait()
        await hang_up(writer)
        await left(pipeline)
    assert pipeline.tokens_given == 3


async def test_one_client_that_goes_does_not_disturb_another() -> None:
    pipeline = FakePipeline(b"abcdef", park_at=3)
    async with serving(app_for(pipeline)) as url:
        _, leaving = await open_request(url, stream=True)
        reader, staying = await open_request(url, stream=True)
        await reader.readuntil(b'"content":"c"')
        await hang_up(leaving)
        await pipeline.left.wait()
        pipeline.resume.set()
        rest = await reader.readuntil(b"data: [DONE]\n\n")
        staying.close()
        await staying.wait_closed()
    assert b'"content":"f"' in rest


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_stops_leaves_its_sessions(stream: bool) -> None:
    pipeline = FakePipeline(b"abcdef", park_at=3)
    async with serving(app_for(pipeline)) as url:
        _, writer = await open_request(url, stream=stream)
        await pipeline.parked.wait()
    await left(pipeline)
    await hang_up(writer)


async def test_hanging_up_while_waiting_for_its_turn_leaves_the_queue() -> None:
    """The mesh is full; what waits is a place in line, and it is given up like everything else."""
    pipeline, room = FakePipeline(b"abcdef", park_at=3), FakeRoom(tokens=100)
    admission = Admission(room)
    model = served_model(pipeline, admission=admission)
    async with serving(create_app({model.name: model}, lambda: health(1, 1, 1, 1))) as url:
        reader, running = await open_request(url, stream=True)
        await reader.readuntil(b'"content":"c"')
        _, waiting = await open_request(url, stream=True)
        async with asyncio.timeout(5):
            while not admission.num_waiting:
                await asyncio.sleep(0.01)
            await hang_up(waiting)
            while admission.num_waiting:
                await asyncio.sleep(0.01)
        assert len(pipeline.requests) == 1
        pipeline.resume.set()
        await reader.readuntil(b"data: [DONE]")
        await hang_up(running)
    assert len(room.ledger) == 0
