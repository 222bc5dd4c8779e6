"""Chat completions as OpenAI clients read them: one body, or chunks of a stream. Pure.

The rules of chunks, each broken by some server and noticed by some client: ``finish_reason`` is always there,
``null`` until the one finish chunk of its choice, whose delta is empty; the first chunk says the role; the usage chunk
comes last, with no choices, and only if it was asked for; ``id``, ``created`` and ``model`` are the same throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.api.answer import AnswerHead, json_logprob, mesh_object, token_text, usage
from coordinator.generation import Event, FinishEvent, ScoredToken, TextEvent
from mesh.model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """The dialect of ``/v1/chat/completions``."""

    head: AnswerHead
    tokenizer: Tokenizer
    answers: int  # choices
    has_logprobs: bool

    def body(self, events: Sequence[Event]) -> dict[str, Any]:
        """The whole answer of a request that does not stream."""
        finishes = sorted(
            (event for event in events if isinstance(event, FinishEvent)), key=lambda finish: finish.choice
        )
        return {
            **self.head.of("chat.completion"),
            "choices": [self._choice(finish, events) for finish in finishes],
            "usage": usage(finishes, self.answers),
            "mesh": mesh_object(finishes[0]),
        }

    def opening(self) -> list[dict[str, Any]]:
        return [self._chunk(choice, {"role": "assistant", "content": ""}) for choice in range(self.answers)]

    def chunks(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case TextEvent():
                return [self._chunk(event.choice, {"content": event.text}, self._logprobs(event.tokens))]
            case FinishEvent():
                return [self._chunk(event.choice, {}, finish_reason=event.reason)]
            case _:
                return []

    def usage_chunk(self, finishes: Sequence[FinishEvent]) -> dict[str, Any]:
        head = self.head.of("chat.completion.chunk")
        return {**head, "choices": [], "usage": usage(finishes, self.answers)}

    def _choice(self, finish: FinishEvent, events: Sequence[Event]) -> dict[str, Any]:
        texts = [event for event in events if isinstance(event, TextEvent) and event.choice == finish.choice]
        content = "".join(event.text for event in texts)
        return {
            "index": finish.choice,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": self._logprobs([token for event in texts for token in event.tokens]),
            "finish_reason": finish.reason,
        }

    def _chunk(
        self,
        choice: int,
        delta: dict[str, str],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        fields = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self.head.of("chat.completion.chunk"), "choices": [fields]}

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any] | None:
        """Of the tokens that have text: an end token is no part of a message."""
        if not self.has_logprobs:
            return None
        content = [
            {
                **self._token(scored.token_id, scored.logprobs.logprob),
                "top_logprobs": [self._token(*likely) for likely in scored.logprobs.top],
            }
            for scored in tokens
            if not scored.is_end
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        token = self.tokenizer.token_bytes(token_id)
        return {"token": token_text(token), "logprob": json_logprob(logprob), "bytes": list(token)}
