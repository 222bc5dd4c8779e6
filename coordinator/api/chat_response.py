"""Chat completions as OpenAI clients read them: one body, or chunks of a stream. Pure.

The rules of chunks, each broken by some server and noticed by some client: ``finish_reason`` is always there,
``null`` until the one finish chunk of its choice, whose delta is empty; the first chunk says the role; the usage chunk
comes last, with no choices, and only if it was asked for; ``id``, ``created`` and ``model`` are the same throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from coordinator.api.answer import AnswerHead, mesh_object, scored_json, usage
from coordinator.api.errors import Failure
from coordinator.calling import whole_calls
from coordinator.generation import CallEvent, Event, FinishEvent, ScoredToken, TextEvent, TokenIds
from mesh.model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """The dialect of ``/v1/chat/completions``."""

    head: AnswerHead
    tokenizer: Tokenizer
    answers: int  # choices
    has_logprobs: bool
    prompt_ids: TokenIds | None = None  # if asked for, with those of the answer
    has_event_names: ClassVar[bool] = False

    def body(self, events: Sequence[Event]) -> dict[str, Any]:
        """The whole answer of a request that does not stream."""
        finishes = sorted(
            (event for event in events if isinstance(event, FinishEvent)), key=lambda finish: finish.choice
        )
        return {
            **self._head("chat.completion"),
            "choices": [self._choice(finish, events) for finish in finishes],
            "usage": usage(finishes, self.answers),
            "mesh": mesh_object(finishes[0]),
        }

    def opening(self) -> list[dict[str, Any]]:
        chunks = [self._chunk(each, {"role": "assistant", "content": ""}) for each in range(self.answers)]
        chunks[0] |= self._prompt_ids()
        return chunks

    def chunks(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case TextEvent():
                delta = {"content": event.text}
                return [self._chunk(event.choice, delta, self._logprobs(event.tokens), ids=event.ids)]
            case CallEvent():
                return [self._chunk(event.choice, {"tool_calls": [_call_delta(event)]})]
            case FinishEvent():
                return [self._chunk(event.choice, {}, finish_reason=event.reason)]
            case _:
                return []

    def closing(self, finishes: Sequence[FinishEvent], include_usage: bool) -> list[dict[str, Any]]:
        head = self.head.of("chat.completion.chunk")
        told = {**head, "choices": [], "usage": usage(finishes, self.answers)}
        return [told] if include_usage else []

    def failure(self, failure: Failure, request_id: str) -> list[dict[str, Any]]:
        return [failure.body()]

    def _head(self, kind: str) -> dict[str, Any]:
        return {**self.head.of(kind), **self._prompt_ids()}

    def _prompt_ids(self) -> dict[str, Any]:
        return {} if self.prompt_ids is None else {"prompt_token_ids": list(self.prompt_ids)}

    def _choice(self, finish: FinishEvent, events: Sequence[Event]) -> dict[str, Any]:
        texts = [event for event in events if isinstance(event, TextEvent) and event.choice == finish.choice]
        content = "".join(event.text for event in texts)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls := whole_calls(events, finish.choice):
            message |= {"content": content or None, "tool_calls": [_call(call) for call in calls]}
        ids = [token_id for event in texts for token_id in event.ids]
        return {
            "index": finish.choice,
            "message": message,
            **({} if self.prompt_ids is None else {"token_ids": ids}),
            "logprobs": self._logprobs([token for event in texts for token in event.tokens]),
            "finish_reason": finish.reason,
        }

    def _chunk(
        self,
        choice: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        ids: TokenIds = (),
    ) -> dict[str, Any]:
        fields = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        if self.prompt_ids is not None:
            fields["token_ids"] = list(ids)
        return {**self.head.of("chat.completion.chunk"), "choices": [fields]}

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any] | None:
        """Of the tokens that have text: an end token is no part of a message."""
        if not self.has_logprobs:
            return None
        content = [scored_json(self.tokenizer, scored) for scored in tokens if not scored.is_end]
        return {"content": content, "refusal": None}


def _call(call: CallEvent) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _call_delta(event: CallEvent) -> dict[str, Any]:
    """The first of a call says its id and name, the others more of its arguments."""
    if event.id is None:
        return {"index": event.index, "function": {"arguments": event.arguments}}
    return {"index": event.index, **_call(event)}
