"""A link: one long-lived bidirectional stream between two neighbours, carrying frames of many sessions.

Both ends use the same class; only who dials differs. It owns what gRPC leaves to us: one writer at a time (concurrent
writes break a stream), a bounded queue, and credits, so that a slow reader holds back the sender after a known number
of frames instead of after the transport's four megabytes. It knows frames, not what they mean.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc.aio

from mesh.errors import MeshError, Unreachable
from mesh.wire import stage_pb2
from mesh.wire.protocol import VERSION

WINDOW = 32  # frames of steps a receiver buffers: at most 32 MiB per link
_MAX_CONTROL_FRAMES = 4096  # queued opens, closes and tokens; more means the peer stopped reading


class FrameStream(Protocol):
    """What grpc.aio's client call and server context have in common."""

    async def read(self) -> Any: ...

    async def write(self, message: Any) -> None: ...


class LinkClosed(Unreachable):
    """The stream ended or broke; whatever was sent last may not have arrived."""


class VersionMismatch(MeshError):
    pass


class Link:
    """Use: ``await link.greet(...)`` once, then ``await link.run(on_frame)`` until it ends; send from anywhere."""

    def __init__(self, stream: FrameStream, peer: str) -> None:
        self.peer = peer  # for messages: the node's name or address
        self._stream = stream
        self._outgoing: asyncio.Queue[stage_pb2.Frame | None] = asyncio.Queue(_MAX_CONTROL_FRAMES)
        self._credits = asyncio.Semaphore(0)
        self._closed = asyncio.Event()

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    async def greet(self, hello: stage_pb2.Hello) -> stage_pb2.Hello:
        """As the dialling side: say who we are, learn who answers. Raises LinkClosed, VersionMismatch."""
        await self._write_hello(hello)
        return await self._read_hello()

    async def await_greeting(self) -> stage_pb2.Hello:
        """As the answering side: who dials? Answer with ``answer``. Raises LinkClosed, VersionMismatch."""
        return await self._read_hello()

    async def answer(self, hello: stage_pb2.Hello) -> None:
        await self._write_hello(hello)

    def send(self, frame: stage_pb2.Frame) -> None:
        """Queue a control frame (anything but steps). Frames leave in the order they were queued."""
        if self.is_closed:
            return
        try:
            self._outgoing.put_nowait(frame)
        except asyncio.QueueFull:
            self._closed.set()  # a peer that does not read is a lost peer
            self._credits.release()

    async def send_steps(self, steps: stage_pb2.Steps) -> None:
        """Queue a frame of steps as soon as the peer has room for it. Raises LinkClosed."""
        await self._credits.acquire()
        if self.is_closed:
            self._credits.release()  # wake the next waiter: it must learn of it too
            raise LinkClosed(f"link to {self.peer} is closed")
        await self._outgoing.put(stage_pb2.Frame(steps=steps))

    def grant_credit(self, frames: int = 1) -> None:
        """Tell the peer that we took ``frames`` frames of steps out of our buffer."""
        self.send(stage_pb2.Frame(credit=stage_pb2.Credit(frames=frames)))

    async def run(self, on_frame: Callable[[stage_pb2.Frame], Awaitable[None] | None]) -> None:
        """Pump both directions until the peer ends the stream, it breaks, or ``close`` is called.

        Returns in each case: a link that ends is an event, not an error. Errors of ``on_frame`` are raised.
        """
        reader = asyncio.create_task(self._read_frames(on_frame), name=f"link-read {self.peer}")
        writer = asyncio.create_task(self._write_frames(), name=f"link-write {self.peer}")
        closed = asyncio.create_task(self._closed.wait())
        tasks = {reader, writer, closed}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._closed.is_set() and not writer.done():
                with contextlib.suppress(asyncio.QueueFull):
                    self._outgoing.put_nowait(None)  # let what is queued leave first
                await asyncio.wait({writer}, timeout=1.0)
        finally:
            self.close()
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, _STREAM_ENDS):
                raise result

    def close(self) -> None:
        """End the link; frames already queued are still written if the peer takes them promptly."""
        self._closed.set()
        self._credits.release()

    async def _read_frames(self, on_frame: Callable[[stage_pb2.Frame], Awaitable[None] | None]) -> None:
        while (frame := await self._stream.read()) is not grpc.aio.EOF:
            if frame.WhichOneof("kind") == "credit":
                for _ in range(min(frame.credit.frames, WINDOW)):
                    self._credits.release()
                continue
            handled = on_frame(frame)
            if handled is not None:
                await handled

    async def _write_frames(self) -> None:
        while (frame := await self._outgoing.get()) is not None:
            await self._stream.write(frame)

    async def _write_hello(self, hello: stage_pb2.Hello) -> None:
        hello.protocol, hello.credits = VERSION, WINDOW
        try:
            await self._stream.write(stage_pb2.Frame(hello=hello))
        except _STREAM_ENDS as exc:
            raise LinkClosed(f"{self.peer} does not answer: {_reason(exc)}") from exc

    async def _read_hello(self) -> stage_pb2.Hello:
        try:
            frame = await self._stream.read()
        except _STREAM_ENDS as exc:
            raise LinkClosed(f"{self.peer} does not answer: {_reason(exc)}") from exc
        if frame is grpc.aio.EOF or frame.WhichOneof("kind") != "hello":
            raise LinkClosed(f"{self.peer} ended the link before saying hello")
        hello: stage_pb2.Hello = frame.hello
        if hello.protocol != VERSION:
            raise VersionMismatch(
                f"{self.peer} speaks wire protocol {hello.protocol}, this side {VERSION}; upgrade the older one"
            )
        for _ in range(min(hello.credits, WINDOW)):
            self._credits.release()
        return hello


# How grpc.aio reports that a stream is over, on the client's and on the server's side.
_STREAM_ENDS = (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError, ConnectionError)


def _reason(exc: BaseException) -> str:
    return exc.details() or exc.code().name if isinstance(exc, grpc.aio.AioRpcError) else str(exc)
