"""Sends one answer: waits for it, streams it, or gives it up when the client has gone.

The response owns the generation: however it ends (finished, failed, client gone, server stopping), the
session has been left when it returns. Headers go out with the first event, so that what fails before it has an
HTTP status of its own; after ``HEADER_PATIENCE_SECONDS`` of prefill they go out anyway, and keep-alive comments
with them, because proxies cut a connection that stays silent.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from coordinator.api.answer import Answer, mesh_object
from coordinator.api.errors import describe
from coordinator.api.running import RunningGeneration
from coordinator.generation import Event, FinishEvent
from mesh.errors import MeshError

logger = logging.getLogger(__name__)
# It writes every chunk into its log at DEBUG; what was said is never logged.
logging.getLogger("sse_starlette.sse").setLevel(logging.INFO)

HEADER_PATIENCE_SECONDS = 15.0
KEEPALIVE_SECONDS = 15.0  # proxies give up on silence after 30 to 60 s
SEND_TIMEOUT_SECONDS = 60.0  # a client that takes nothing for so long is gone

T = TypeVar("T")


class AnswerResponse(Response):
    """The answer to one request in its dialect, streamed or not."""

    def __init__(
        self,
        answer: Answer,
        events: AsyncGenerator[Event, None],
        *,
        stream: bool,
        include_usage: bool,
        timeout_seconds: float | None,
    ) -> None:
        super().__init__()
        self._answer, self._source, self._timeout_seconds = answer, events, timeout_seconds
        self._stream, self._include_usage = stream, include_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = scope["state"]["request_id"]
        async with RunningGeneration(self._source, self._timeout_seconds) as generation:
            try:
                if self._stream:
                    await _while_connected(receive, generation.begun(HEADER_PATIENCE_SECONDS))
                    response: Response = self._event_stream(generation, request_id)
                else:
                    response = JSONResponse(await _while_connected(receive, self._body(generation)))
                await response(scope, receive, send)
            except (_ClientGone, SendTimeoutError):
                _log_gone(request_id)

    async def _body(self, generation: RunningGeneration) -> dict[str, Any]:
        events = [event async for event in generation.events()]
        if generation.error is not None:
            raise generation.error
        return self._answer.body(events)

    def _event_stream(self, generation: RunningGeneration, request_id: str) -> EventSourceResponse:
        async def on_gone(_: Message) -> None:
            _log_gone(request_id)

        return EventSourceResponse(
            self._events(generation, request_id),
            headers={"Cache-Control": "no-cache"},
            sep="\n",
            ping=KEEPALIVE_SECONDS,
            ping_message_factory=lambda: ServerSentEvent(comment="keepalive", sep="\n"),
            send_timeout=SEND_TIMEOUT_SECONDS,
            client_close_handler_callable=on_gone,
        )

    async def _events(self, generation: RunningGeneration, request_id: str) -> AsyncIterator[ServerSentEvent]:
        for chunk in self._answer.opening():
            yield self._event(chunk)
        finishes: list[FinishEvent] = []
        async for event in generation.events():
            chunks = self._answer.chunks(event)
            if isinstance(event, FinishEvent):
                finishes.append(event)
                if len(finishes) == self._answer.answers:
                    chunks += self._answer.closing(finishes, self._include_usage)
                    chunks[-1]["mesh"] = mesh_object(event)
            for chunk in chunks:
                yield self._event(chunk)
        if (error := generation.error) is not None:
            # Too late for a status. Clients raise on such an event; without [DONE] nobody takes the text for
            # whole.
            failure = describe(error)
            is_ours = isinstance(error, MeshError)
            logger.log(
                logging.WARNING if is_ours else logging.ERROR,
                "answer failed: %s",
                failure.message,
                extra={"request_id": request_id, "code": failure.code},
                exc_info=None if is_ours else error,
            )
            for chunk in self._answer.failure(failure, request_id):
                yield self._event(chunk)
        elif not self._answer.has_event_names:
            yield ServerSentEvent("[DONE]", sep="\n")

    def _event(self, chunk: dict[str, Any]) -> ServerSentEvent:
        data = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
        name = chunk["type"] if self._answer.has_event_names else None
        return ServerSentEvent(data, event=name, sep="\n")


class _ClientGone(Exception):
    """An outcome, not a fault."""


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``. Raises _ClientGone, with ``work`` cancelled, once nobody is there to have it."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _ClientGone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _log_gone(request_id: str) -> None:
    logger.info("client gone", extra={"request_id": request_id})
