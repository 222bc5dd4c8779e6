"""The coordinator's link to one node, and the sessions that use it. Knows frames; nothing of routes or text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from coordinator.routing import RouteStage
from mesh.errors import MeshError
from mesh.wire import stage_pb2, stage_pb2_grpc
from mesh.wire.channel import format_endpoint, open_channel
from mesh.wire.link import Link, LinkClosed

Told = stage_pb2.Token | stage_pb2.PromptScores | stage_pb2.SessionFailed


class LinkedSession(Protocol):
    """What a link tells a session of."""

    @property
    def id(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    def on_opened(self) -> None: ...
    def on_event(self, event: Told) -> None: ...


class NodeLink:
    """Dials when made; ``on_closed(link, by_us)`` is called once, when it has ended."""

    def __init__(self, stage: RouteStage, on_closed: Callable[[NodeLink, bool], None]) -> None:
        self.stage = stage
        self._on_closed = on_closed
        self._sessions: dict[str, LinkedSession] = {}
        self._link: Link | None = None
        self._closing = False
        self._reason = f"{stage.name} was lost"  # why the link ended, unless we learn better
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(), name=f"link {stage.name}")

    async def connected(self) -> None:
        """Raises Unreachable if the node does not answer or is not the one the route means."""
        await asyncio.shield(self._ready)

    def attach(self, session: LinkedSession) -> None:
        self._sessions[session.id] = session

    def detach(self, session: LinkedSession) -> None:
        self._sessions.pop(session.id, None)

    def send(self, frame: stage_pb2.Frame) -> None:
        if self._link is not None:
            self._link.send(frame)

    async def send_steps(self, steps: stage_pb2.Steps) -> None:
        assert self._link is not None
        await self._link.send_steps(steps)

    async def close(self, reason: str) -> None:
        self._reason, self._closing = reason, True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            async with open_channel(format_endpoint(self.stage.host, self.stage.port)) as channel:
                link = Link(stage_pb2_grpc.StageStub(channel).Link(), self.stage.name)
                hello = await link.greet(stage_pb2.Hello(sender="coordinator"))
                layers = (hello.layers.start, hello.layers.stop)
                if hello.incarnation != self.stage.incarnation or layers != (
                    self.stage.layers.start,
                    self.stage.layers.stop,
                ):
                    raise LinkClosed(f"{self.stage.name} is not the stage the route was made for")
                self._link = link
                self._ready.set_result(None)
                await link.run(self._on_frame)
        except MeshError as exc:
            self._reason = str(exc)  # the link speaks of its peer by name
        finally:
            self._on_closed(self, self._closing)
            if not self._ready.done():
                self._ready.set_exception(LinkClosed(self._reason))
                self._ready.exception()  # seen here too: nobody may be waiting
            for session in list(self._sessions.values()):
                session.on_event(
                    stage_pb2.SessionFailed(
                        session=session.id,
                        reason=stage_pb2.SessionFailed.PEER_LOST,
                        message=self._reason,
                        node_id=self.stage.node_id,
                        lost_node_id=self.stage.node_id,
                    )
                )

    def _on_frame(self, frame: stage_pb2.Frame) -> None:
        match frame.WhichOneof("kind"):
            case "tokens":
                for token in frame.tokens.tokens:
                    if (session := self._find(token)) is not None:
                        session.on_event(token)
            case "scores":
                if (session := self._find(frame.scores)) is not None:
                    session.on_event(frame.scores)
            case "opened":
                if (session := self._find(frame.opened)) is not None:
                    session.on_opened()
            case "failed":
                if (session := self._find(frame.failed)) is not None:
                    session.on_event(frame.failed)

    def _find(self, about: Any) -> LinkedSession | None:
        """The session a frame speaks of; None for a closed one or an older epoch."""
        session = self._sessions.get(about.session)
        return session if session is not None and session.epoch == about.epoch else None
