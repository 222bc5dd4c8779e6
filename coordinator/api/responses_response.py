"""Answers as clients of the Responses dialect read them: one response object, or the events that build it. Pure.

The whole answer is made by the same events as the stream, so the two cannot differ. Events are numbered; every item is added,
filled and done, and the last event holds the whole response.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from coordinator.api.answer import AnswerHead, mesh_object, scored_json
from coordinator.api.errors import Failure
from coordinator.api.responses_request import ResponsesRequest
from coordinator.generation import CallEvent, Event, FinishEvent, TextEvent
from mesh.model.tokenizer import Tokenizer


@dataclass(slots=True)
class ResponsesAnswer:
    """The dialect of ``/v1/responses``. Keeps what has been said so far."""

    head: AnswerHead
    tokenizer: Tokenizer
    request: ResponsesRequest
    answers: ClassVar[int] = 1
    has_event_names: ClassVar[bool] = True
    _items: list[dict[str, Any]] = field(default_factory=list)  # the last is open until it is closed
    _is_open: bool = False
    _finish: FinishEvent | None = None
    _number: int = 0

    def body(self, events: Sequence[Event]) -> dict[str, Any]:
        for event in events:
            self.chunks(event)
        return self._whole()

    def opening(self) -> list[dict[str, Any]]:
        kinds = ("response.created", "response.in_progress")
        return [self._event(kind, response=self._response("in_progress")) for kind in kinds]

    def chunks(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case TextEvent():
                return self._say(event) if event.text else []
            case CallEvent():
                return self._call(event)
            case FinishEvent():
                self._finish = event
                # An answer without a word is a message without one.
                opened = [] if self._items else self._open_message()
                return [*opened, *self._close()]
            case _:
                return []

    def closing(self, finishes: Sequence[FinishEvent], include_usage: bool) -> list[dict[str, Any]]:
        whole = self._whole()
        return [self._event(f"response.{whole['status']}", response=whole)]

    def failure(self, failure: Failure, request_id: str) -> list[dict[str, Any]]:
        error = {"code": failure.code, "message": failure.message}
        return [self._event("response.failed", response={**self._response("failed"), "error": error})]

    # -- items

    def _say(self, event: TextEvent) -> list[dict[str, Any]]:
        chunks = []
        if not (self._is_open and self._items[-1]["type"] == "message"):
            chunks = [*self._close(), *self._open_message()]
        part = self._items[-1]["content"][0]
        part["text"] += event.text
        logprobs = []
        if self.request.logprobs is not None:
            logprobs = [scored_json(self.tokenizer, each) for each in event.tokens if not each.is_end]
            part["logprobs"] += logprobs
        place = self._place(content_index=0)
        return [
            *chunks,
            self._event("response.output_text.delta", **place, delta=event.text, logprobs=logprobs),
        ]

    def _call(self, event: CallEvent) -> list[dict[str, Any]]:
        if event.id is None:
            item = self._items[-1]
            item["arguments"] += event.arguments
            if item["type"] == "custom_tool_call":
                return []  # free text, spelt as JSON until it is whole
            return [
                self._event("response.function_call_arguments.delta", **self._place(), delta=event.arguments)
            ]
        is_custom = event.name in self.request.custom_names
        kind, prefix = ("custom_tool_call", "ctc") if is_custom else ("function_call", "fc")
        item = {"type": kind, "id": _id(prefix), "call_id": event.id, "name": event.name, "arguments": ""}
        return [*self._close(), *self._open(item)]

    def _open_message(self) -> list[dict[str, Any]]:
        item: dict[str, Any] = {"type": "message", "id": _id("msg"), "role": "assistant", "content": []}
        chunks = self._open(item)
        part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        chunks.append(
            self._event("response.content_part.added", **self._place(content_index=0), part=_copy(part))
        )
        item["content"] = [part]
        return chunks

    def _open(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        item["status"] = "in_progress"
        self._items.append(item)
        self._is_open = True
        told = _shown(item)
        return [self._event("response.output_item.added", output_index=len(self._items) - 1, item=told)]

    def _close(self) -> list[dict[str, Any]]:
        if not self._is_open:
            return []
        item, self._is_open = self._items[-1], False
        is_cut = self._finish is not None and self._finish.reason == "length"
        item["status"] = "incomplete" if is_cut else "completed"
        content = self._content_done(item)
        place = len(self._items) - 1
        return [*content, self._event("response.output_item.done", output_index=place, item=_shown(item))]

    def _content_done(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        if item["type"] == "message":
            part, place = item["content"][0], self._place(content_index=0)
            return [
                self._event(
                    "response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"]
                ),
                self._event("response.content_part.done", **place, part=_copy(part)),
            ]
        if item["type"] == "custom_tool_call":
            text = _shown(item)["input"]
            return [
                self._event("response.custom_tool_call_input.delta", **self._place(), delta=text),
                self._event("response.custom_tool_call_input.done", **self._place(), input=text),
            ]
        told = {"name": item["name"], "arguments": item["arguments"]}
        return [self._event("response.function_call_arguments.done", **self._place(), **told)]

    def _place(self, **more: int) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, **more}

    # -- events and the response

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _whole(self) -> dict[str, Any]:
        assert self._finish is not None
        is_cut = self._finish.reason == "length"
        used = self._finish.usage
        return {
            **self._response("incomplete" if is_cut else "completed"),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "usage": {
                "input_tokens": used.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": used.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": used.prompt_tokens + used.completion_tokens,
            },
            "mesh": mesh_object(self._finish),
        }

    def _response(self, status: str) -> dict[str, Any]:
        """With what was asked for, as it is used here."""
        asked = self.request
        given = asked.model_dump(include={"text", "tools", "tool_choice"}, exclude_none=True, by_alias=True)
        return {
            "id": self.head.id,
            "object": "response",
            "created_at": self.head.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self.head.model,
            "output": [_shown(item) for item in self._items],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": {"format": {"type": "text"}, **given.get("text", {})},
            "tool_choice": given.get("tool_choice", "auto"),
            "tools": given.get("tools", []),
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": None,
        }


def _shown(item: dict[str, Any]) -> dict[str, Any]:
    """A copy: what is sent does not change when more is said."""
    if item["type"] != "custom_tool_call":
        return _copy(item)
    told = {name: value for name, value in item.items() if name != "arguments"}
    try:
        told["input"] = str(json.loads(item["arguments"])["input"])
    except (ValueError, LookupError, TypeError, RecursionError):
        told["input"] = item["arguments"]
    return told


def _copy(value: dict[str, Any]) -> dict[str, Any]:
    return {
        key: [dict(each) for each in part] if isinstance(part, list) else part for key, part in value.items()
    }


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
