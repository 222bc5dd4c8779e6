"""A link delivers frames in order, holds back a sender the reader cannot follow, and reports its end once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import pytest

from mesh.wire import stage_pb2, stage_pb2_grpc
from mesh.wire.channel import open_channel, server_options
from mesh.wire.link import WINDOW, Link, LinkClosed, VersionMismatch
from mesh.wire.protocol import VERSION


class Listener(stage_pb2_grpc.StageServicer):
    """A real gRPC server whose side of each link the test holds in its hands."""

    def __init__(self) -> None:
        self.frames: list[stage_pb2.Frame] = []
        self.arrived = asyncio.Event()
        self.ended = asyncio.Event()
        self.give_credit = True
        self.link: Link | None = None

    async def Link(self, request_iterator, context):
        self.link = link = Link(context, "dialler")
        try:
            await link.await_greeting()
        except VersionMismatch as exc:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(exc))
        await link.answer(stage_pb2.Hello(sender="listener"))
        try:  # grpc.aio ends a handler whose client has gone by cancelling it
            await link.run(self._on_frame)
        finally:
            self.ended.set()

    def _on_frame(self, frame: stage_pb2.Frame) -> None:
        self.frames.append(frame)
        self.arrived.set()
        if self.give_credit and frame.WhichOneof("kind") == "steps":
            self.link.grant_credit()


@pytest.fixture
async def listener() -> AsyncIterator[tuple[Listener, str]]:
    service = Listener()
    server = grpc.aio.server(options=server_options())
    stage_pb2_grpc.add_StageServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield service, f"127.0.0.1:{port}"
    await server.stop(grace=0)


async def dial(target: str, channel: grpc.aio.Channel) -> Link:
    link = Link(stage_pb2_grpc.StageStub(channel).Link(), target)
    await link.greet(stage_pb2.Hello(sender="test"))
    return link


async def until(listener: Listener, count: int) -> None:
    async with asyncio.timeout(10):
        while len(listener.frames) < count:
            listener.arrived.clear()
            await listener.arrived.wait()


async def test_frames_arrive_in_the_order_they_were_queued(listener: tuple[Listener, str]) -> None:
    service, target = listener
    async with open_channel(target) as channel:
        link = await dial(target, channel)
        pump = asyncio.create_task(link.run(lambda frame: None))
        for number in range(200):
            link.send(stage_pb2.Frame(close=stage_pb2.CloseSession(session=str(number))))
        await until(service, 200)
        link.close()
        await pump
    assert [frame.close.session for frame in service.frames] == [str(n) for n in range(200)]


async def test_concurrent_senders_do_not_break_the_stream(listener: tuple[Listener, str]) -> None:
    service, target = listener
    async with open_channel(target) as channel:
        link = await dial(target, channel)
        pump = asyncio.create_task(link.run(lambda frame: None))
        await asyncio.gather(*(link.send_steps(stage_pb2.Steps(hidden_size=n)) for n in range(300)))
        await until(service, 300)
        link.close()
        await pump
    assert {frame.steps.hidden_size for frame in service.frames} == set(range(300))


async def test_sender_waits_when_the_reader_gives_no_credit(listener: tuple[Listener, str]) -> None:
    service, target = listener
    service.give_credit = False
    async with open_channel(target) as channel:
        link = await dial(target, channel)
        pump = asyncio.create_task(link.run(lambda frame: None))
        senders = [asyncio.create_task(link.send_steps(stage_pb2.Steps())) for _ in range(WINDOW + 5)]
        await until(service, WINDOW)
        assert sum(task.done() for task in senders) == WINDOW
        service.link.grant_credit(5)
        await asyncio.gather(*senders)
        await until(service, WINDOW + 5)
        link.close()
        await pump


async def test_waiting_sender_learns_that_the_link_is_closed(listener: tuple[Listener, str]) -> None:
    service, target = listener
    service.give_credit = False
    async with open_channel(target) as channel:
        link = await dial(target, channel)
        pump = asyncio.create_task(link.run(lambda frame: None))
        senders = [asyncio.create_task(link.send_steps(stage_pb2.Steps())) for _ in range(WINDOW + 3)]
        await until(service, WINDOW)
        link.close()
        results = await asyncio.gather(*senders, return_exceptions=True)
        await pump
    assert [type(result) for result in results[WINDOW:]] == [LinkClosed] * 3


async def test_both_sides_learn_when_the_dialler_closes(listener: tuple[Listener, str]) -> None:
    service, target = listener
    async with open_channel(target) as channel:
        link = await dial(target, channel)
        pump = asyncio.create_task(link.run(lambda frame: None))
        link.close()
        await pump
        assert link.is_closed
    async with asyncio.timeout(10):
        await service.ended.wait()
    assert service.link.is_closed


async def test_dialler_learns_when_the_listener_closes(listener: tuple[Listener, str]) -> None:
    service, target = listener
    async with open_channel(target) as channel:
        link = await dial(target, channel)
        pump = asyncio.create_task(link.run(lambda frame: None))
        link.send(stage_pb2.Frame(close=stage_pb2.CloseSession(session="s")))
        await until(service, 1)
        service.link.close()
        async with asyncio.timeout(10):
            await pump
        assert link.is_closed


async def test_another_protocol_version_is_refused_naming_both(
    listener: tuple[Listener, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, target = listener
    async with open_channel(target) as channel:
        call = stage_pb2_grpc.StageStub(channel).Link()
        await call.write(stage_pb2.Frame(hello=stage_pb2.Hello(protocol=VERSION + 1)))
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call.read()
    assert f"protocol {VERSION + 1}, this side {VERSION}" in refusal.value.details()


async def test_nobody_listening_is_a_closed_link_that_names_the_address() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        with pytest.raises(LinkClosed, match=r"127\.0\.0\.1:1"):
            await dial("127.0.0.1:1", channel)
