"""The gate before the routes: who is asking, may they, and have they had their share. Plain ASGI: streams stay streams.

Everything but the three health routes is behind it, so a route cannot forget to ask. What it finds out stands in
``request.state.caller``. Rate limits are told with every response, as OpenAI tells them.
"""

from __future__ import annotations

import logging
import math

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.access.api_keys import Scope as KeyScope
from coordinator.access.callers import Caller, Callers, bearer_key
from coordinator.api.errors import describe
from mesh.errors import MeshError

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset(
    {"/health", "/v1/health", "/livez", "/readyz"}
)  # for load balancers; they say no secrets
TRACKER_PREFIX = "/announce/"  # BitTorrent clients bring a passkey instead
# Each keeps stages busy for as long as it runs; the rest is answered at once.
GENERATING_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})


class Gate:
    def __init__(self, app: ASGIApp, callers: Callers) -> None:
        self._app, self._callers, self._clock = app, callers, callers.clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or _is_tracker(scope):
            await self._app(scope, receive, send)
            return
        is_stream = scope["method"] == "POST" and scope["path"] in GENERATING_PATHS
        try:
            caller = await self._callers.identify(_key(Headers(scope=scope)))
        except MeshError as exc:
            await self._refuse(exc, scope, receive, send)
            return

        async def send_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._tell_limits(caller, MutableHeaders(scope=message))
            await send(message)

        try:
            scope_needed = KeyScope.GENERATE if is_stream else KeyScope.INSPECT
            self._callers.begin(caller, scope_needed, is_stream=is_stream)
        except MeshError as exc:
            await self._refuse(exc, scope, receive, send_limits)
            return
        scope["state"]["caller"] = caller
        try:
            await self._app(scope, receive, send_limits)
        finally:
            if is_stream:
                caller.meter.end_stream()

    def _tell_limits(self, caller: Caller, headers: MutableHeaders) -> None:
        for name, level in caller.meter.levels(self._clock.monotonic()).items():
            headers[f"x-ratelimit-limit-{name}"] = str(level.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(level.remaining)
            headers[f"x-ratelimit-reset-{name}"] = f"{math.ceil(level.reset_seconds * 1000)}ms"

    async def _refuse(self, error: MeshError, scope: Scope, receive: Receive, send: Send) -> None:
        failure = describe(error)
        logger.info(
            "request refused",
            extra={
                "request_id": scope["state"]["request_id"],
                "status": failure.status,
                "code": failure.code,
            },
        )
        await failure.response(scope)(scope, receive, send)


def _is_tracker(scope: Scope) -> bool:
    return scope["type"] == "http" and str(scope["path"]).startswith(TRACKER_PREFIX)


def _key(headers: Headers) -> str | None:
    """As OpenAI's clients send it, or Anthropic's. Raises NotAuthorised for another scheme."""
    return headers.get("x-api-key") or bearer_key(headers.get("authorization"))
