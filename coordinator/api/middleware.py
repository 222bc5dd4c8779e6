"""What holds for every request: it has an id, and a body of bounded size. Plain ASGI: streams stay streams."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.api.anthropic_errors import is_anthropic

MAX_BODY_BYTES = 8 * 1024 * 1024  # a million tokens of text, and JSON around it

SANE_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")  # visible ASCII: it goes into logs and headers as it is
_TOO_LARGE = HTTPException(413, f"the body is larger than {MAX_BODY_BYTES} bytes")


class RequestId:
    """Names the request, by the client's ``x-request-id`` if it is sane, and says the name in the response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if SANE_REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if is_anthropic(scope["path"]):
                    headers["request-id"] = request_id  # where its clients look
            await send(message)

        await self._app(scope, receive, send_named)


class BodyLimit:
    """Refuses a body above ``MAX_BODY_BYTES`` with 413: by its announced length, else once it has grown too long."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:  # size before content
                raise _TOO_LARGE
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise _TOO_LARGE
            return message

        await self._app(scope, receive_bounded, send)
