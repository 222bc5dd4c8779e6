"""Sends hidden states to the next stage: one link per neighbour, carrying the steps of every session that goes there.

Whatever is waiting when the link is free leaves together, so that a busy mesh packs many sessions into a frame.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from mesh.errors import MeshError
from mesh.wire import stage_pb2, stage_pb2_grpc
from mesh.wire.channel import open_channel
from mesh.wire.link import Link, LinkClosed
from mesh.wire.tensors import Rows, pack_rows
from node.sessions import NextStage

logger = logging.getLogger(__name__)

# A step on its way: its header, its rows, and what to call once the rows have left this node.
Outgoing = tuple[stage_pb2.Step, Rows, Callable[[], None]]


class Forwarder:
    """The way to one neighbour; dials when made, reports once when it is lost."""

    def __init__(
        self,
        stage: NextStage,
        hello: stage_pb2.Hello,
        hidden_size: int,
        on_lost: Callable[[NextStage, str], None],
    ) -> None:
        self._stage, self._hello, self._hidden_size, self._on_lost = stage, hello, hidden_size, on_lost
        self._waiting: list[Outgoing] = []
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"forward {stage.target}")

    def send(self, outgoing: Outgoing) -> None:
        self._waiting.append(outgoing)
        self._wake.set()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        reason = "the link ended"
        try:
            async with open_channel(self._stage.target) as channel:
                link = Link(stage_pb2_grpc.StageStub(channel).Link(), self._stage.target)
                answer = await link.greet(self._hello)
                if answer.incarnation != self._stage.incarnation:
                    raise LinkClosed(f"{self._stage.target} was restarted since the route was made")
                pump = asyncio.create_task(link.run(_nothing_expected))
                sender = asyncio.create_task(self._send_all(link))
                try:
                    await asyncio.wait({pump, sender}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    sender.cancel()
                    link.close()
                    await asyncio.gather(pump, sender, return_exceptions=True)
        except MeshError as exc:
            reason = str(exc)
        for _, _, left in self._waiting:
            left()  # nothing will leave any more; whoever counts credits must not wait for it
        logger.info("neighbour lost", extra={"neighbour": self._stage.target, "reason": reason})
        self._on_lost(self._stage, reason)

    async def _send_all(self, link: Link) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            try:
                for frame in pack_rows(((step, rows) for step, rows, _ in batch), self._hidden_size):
                    await link.send_steps(frame)
            finally:
                for _, _, left in batch:
                    left()


def _nothing_expected(frame: stage_pb2.Frame) -> None:
    """A next stage sends only credits back; anything else is ignored, it has no meaning here."""
