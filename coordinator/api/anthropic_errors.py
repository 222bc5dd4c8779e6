"""Errors as Anthropic's clients expect them, on the paths of its dialect."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicErrorFields(BaseModel):
    type: str
    message: str


class AnthropicErrorBody(BaseModel):
    """As ``/openapi.json`` tells it."""

    type: Literal["error"]
    error: AnthropicErrorFields
    request_id: str | None


ANTHROPIC_ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": AnthropicErrorBody,
        "description": "The request cannot be answered; the error says why.",
    },
    "5XX": {
        "model": AnthropicErrorBody,
        "description": "The mesh cannot answer; Retry-After says when to ask again.",
    },
}


def is_anthropic(path: str) -> bool:
    return path.startswith("/v1/messages")


def anthropic_body(
    status: int, message: str, *, param: str | None, code: str, request_id: str
) -> dict[str, Any]:
    """``param`` and ``code`` are ours: clients keep fields that they do not know."""
    fallback = "invalid_request_error" if status < 500 else "api_error"
    error = {"type": _TYPES.get(status, fallback), "message": message, "param": param, "code": code}
    return {"type": "error", "error": error, "request_id": request_id}
