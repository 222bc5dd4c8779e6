"""Answers as clients of Anthropic's Messages dialect read them: one message, or the events that build it. Pure.

The whole answer is made by the same events as the stream, so the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from coordinator.api.answer import AnswerHead, mesh_object
from coordinator.api.errors import Failure
from coordinator.generation import CallEvent, Event, FinishEvent, TextEvent
from coordinator.tools.tool import parsed_arguments


@dataclass(slots=True)
class MessagesAnswer:
    """The dialect of ``/v1/messages``. Keeps what has been said so far."""

    head: AnswerHead
    prompt_tokens: int
    answers: ClassVar[int] = 1
    has_event_names: ClassVar[bool] = True
    _blocks: list[dict[str, Any]] = field(default_factory=list)  # the last is open until it is closed
    _inputs: dict[int, str] = field(default_factory=dict)  # by block: JSON text of a call's input
    _is_open: bool = False

    def body(self, events: Sequence[Event]) -> dict[str, Any]:
        for event in events:
            self.chunks(event)
        [finish] = [event for event in events if isinstance(event, FinishEvent)]
        return {
            **self._message(),
            **_stop(finish),
            "content": self._blocks,
            "usage": self._usage(finish.usage.completion_tokens),
            "mesh": mesh_object(finish),
        }

    def opening(self) -> list[dict[str, Any]]:
        return [{"type": "message_start", "message": self._message()}, {"type": "ping"}]

    def chunks(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case TextEvent():
                return self._say(event.text) if event.text else []
            case CallEvent():
                return self._call(event)
            case FinishEvent():
                used = self._usage(event.usage.completion_tokens)
                return [*self._close(), {"type": "message_delta", "delta": _stop(event), "usage": used}]
            case _:
                return []

    def closing(self, finishes: Sequence[FinishEvent], include_usage: bool) -> list[dict[str, Any]]:
        return [{"type": "message_stop"}]

    def failure(self, failure: Failure, request_id: str) -> list[dict[str, Any]]:
        return [failure.anthropic_body(request_id)]

    def _say(self, text: str) -> list[dict[str, Any]]:
        chunks = []
        if not (self._is_open and self._blocks[-1]["type"] == "text"):
            chunks = [*self._close(), *self._open({"type": "text", "text": ""})]
        self._blocks[-1]["text"] += text
        return [*chunks, self._delta({"type": "text_delta", "text": text})]

    def _call(self, event: CallEvent) -> list[dict[str, Any]]:
        if event.id is None:
            self._inputs[len(self._blocks) - 1] += event.arguments
            return [self._delta({"type": "input_json_delta", "partial_json": event.arguments})]
        block: dict[str, Any] = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
        chunks = [*self._close(), *self._open(block)]
        self._inputs[len(self._blocks) - 1] = ""
        return chunks

    def _open(self, block: dict[str, Any]) -> list[dict[str, Any]]:
        self._blocks.append(block)
        self._is_open = True
        index = len(self._blocks) - 1
        return [{"type": "content_block_start", "index": index, "content_block": dict(block)}]

    def _close(self) -> list[dict[str, Any]]:
        if not self._is_open:
            return []
        self._is_open = False
        index = len(self._blocks) - 1
        if index in self._inputs:
            # An input has to be an object; of a call that was cut off there is none.
            found = parsed_arguments(self._inputs[index])
            self._blocks[index]["input"] = found if isinstance(found, dict) else {}
        return [{"type": "content_block_stop", "index": index}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _message(self) -> dict[str, Any]:
        return {
            "id": self.head.id,
            "type": "message",
            "role": "assistant",
            "model": self.head.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(0),
        }

    def _usage(self, output_tokens: int) -> dict[str, int]:
        cache = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        return {"input_tokens": self.prompt_tokens, **cache, "output_tokens": output_tokens}


def _stop(finish: FinishEvent) -> dict[str, str | None]:
    match finish.reason:
        case "tool_calls":
            reason = "tool_use"
        case "length":
            reason = "model_context_window_exceeded" if finish.fills_context else "max_tokens"
        case _:
            reason = "end_turn" if finish.stop_string is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": finish.stop_string}
