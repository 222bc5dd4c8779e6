"""Errors as OpenAI clients expect them: one body shape for everything that can go wrong.

``{"error": {"message", "type", "param", "code"}}``, all four keys always there. A client library raises by
status, frameworks on top of it look at the code and at words of the message; ``Retry-After`` steers their retries
(the official client obeys up to 120 s and gives up above).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Scope

from coordinator.api.anthropic_errors import anthropic_body, is_anthropic
from coordinator.generation import ContextExceeded
from coordinator.token_pipeline import PipelineLost
from mesh.errors import MeshError, NotAuthorised, NotFound, RequestRefused, Temporary

logger = logging.getLogger(__name__)

MAX_RETRY_AFTER_SECONDS = 120
NODE_LOST_RETRY_SECONDS = 2  # a lease has to end before a route avoids a lost node

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}
# What a base URL with one /v1 too few or too many ends at.
_NO_PATH = (
    "nothing is served at this path; the base URL of OpenAI's clients ends in /v1, that of Anthropic's before it, "
    "and /openapi.json lists all paths"
)
_CODES = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """As ``/openapi.json`` tells it."""

    error: ErrorFields


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be answered; the error says why."},
    "5XX": {"model": ErrorBody, "description": "The mesh cannot answer; Retry-After says when to ask again."},
}


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a client sees it."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after: int | None = None  # seconds
    is_hopeless: bool = False  # official clients would try a 429 or 503 again by themselves
    overflow: tuple[int, int] | None = None  # tokens, and how many the context holds

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic_body(self, request_id: str) -> dict[str, Any]:
        message = self.message
        if self.overflow is not None:  # which Anthropic's clients know by these words
            message = f"prompt is too long: {self.overflow[0]} tokens > {self.overflow[1]} maximum"
        return anthropic_body(self.status, message, param=self.param, code=self.code, request_id=request_id)

    def response(self, scope: Scope, given: Mapping[str, str] | None = None) -> JSONResponse:
        """In the dialect of the path; ``given`` headers go with it."""
        request_id = scope["state"]["request_id"]
        body = self.anthropic_body(request_id) if is_anthropic(scope["path"]) else self.body()
        return JSONResponse(body, self.status, {**(given or {}), **self.headers()})

    def headers(self) -> dict[str, str]:
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.is_hopeless:
            headers["x-should-retry"] = "false"
        elif self.retry_after is not None:
            headers["Retry-After"] = str(min(max(self.retry_after, 1), MAX_RETRY_AFTER_SECONDS))
        return headers


def describe(error: BaseException) -> Failure:
    """What a client is told. An error we did not raise on purpose tells nothing of our insides."""
    match error:
        case ContextExceeded():
            overflow = (error.tokens, error.limit)
            return Failure(error.status, error.code, str(error), error.param, overflow=overflow)
        case RequestRefused():
            return Failure(
                error.status, error.code, str(error), error.param, error.retry_after, error.is_hopeless
            )
        case NotAuthorised():
            return Failure(401, "invalid_api_key", str(error))
        case PipelineLost():
            return Failure(503, "node_lost", str(error), retry_after=NODE_LOST_RETRY_SECONDS)
        case NotFound():
            return Failure(404, "not_found", str(error))
        case Temporary():
            return Failure(503, "unavailable", str(error), retry_after=NODE_LOST_RETRY_SECONDS)
        case MeshError():
            return Failure(500, "internal_error", str(error))
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            code = _CODES.get(
                error.status_code, HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
            )
            return Failure(
                error.status_code, code, _NO_PATH if error.status_code == 404 else str(error.detail)
            )
        case _:
            return Failure(
                500, "internal_error", "internal error; the coordinator's log has it under this x-request-id"
            )


async def respond(request: Request, error: Exception) -> JSONResponse:
    """The one exception handler of the app."""
    failure = describe(error)
    given = error.headers if isinstance(error, HTTPException) else None  # "Allow" of a 405
    # Middleware adds this to every response but a 500, which is sent from outside of it.
    headers = {**(given or {}), "x-request-id": request.state.request_id}
    logger.log(
        logging.WARNING if failure.status >= 500 else logging.INFO,
        "request refused",
        extra={"request_id": request.state.request_id, "status": failure.status, "code": failure.code},
    )
    return failure.response(request.scope, headers)


def _invalid(error: RequestValidationError) -> Failure:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return Failure(
            400, "invalid_json", f"the body is not JSON: {first['ctx']['error']} at byte {first['loc'][-1]}"
        )
    param = param_name(first["loc"][1:])  # without "body"
    if not param:
        return Failure(
            400, "invalid_json", "expected a JSON object and the header Content-Type: application/json"
        )
    return Failure(400, "invalid_value", f"{param}: {first['msg']}", param)


def param_name(path: Sequence[str | int]) -> str | None:
    """``("messages", 0, "role")`` -> ``"messages[0].role"``."""
    name = ""
    for part in path:
        if part == "[key]":  # of a mapping; its name has just been said
            continue
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name or None
