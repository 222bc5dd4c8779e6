"""Chat completions as OpenAI clients read them: one body, or chunks of a stream. Pure.

The rules of chunks, each broken by some server and noticed by some client: ``finish_reason`` is always there,
``null`` until the one finish chunk, whose delta is empty; the first chunk says the role; the usage chunk comes
last, with no choices, and only if it was asked for; ``id``, ``created`` and ``model`` are the same throughout.

Our own ``mesh`` object (route, hops, speed) rides on the last chunk or the body: clients keep unknown fields, but
an event of our own would crash them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coordinator.generation import FinishEvent


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """What all parts of one answer share."""

    id: str
    created: int  # seconds since the Unix epoch
    model: str
    fingerprint: str

    def body(self, text: str, finish: FinishEvent) -> dict[str, Any]:
        """The whole answer of a request that does not stream."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": finish.reason,
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": _usage(finish),
            "mesh": _mesh(finish),
        }

    def role_chunk(self) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": ""})

    def text_chunk(self, text: str) -> dict[str, Any]:
        return self._chunk({"content": text})

    def last_chunks(self, finish: FinishEvent, include_usage: bool) -> list[dict[str, Any]]:
        """The finish chunk and, if asked for, the usage chunk."""
        chunks = [self._chunk({}, finish.reason)]
        if include_usage:
            chunks.append({**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(finish)})
        chunks[-1]["mesh"] = _mesh(finish)
        return chunks

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def _usage(finish: FinishEvent) -> dict[str, int]:
    prompt, completion = finish.usage.prompt_tokens, finish.usage.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _mesh(finish: FinishEvent) -> dict[str, Any]:
    speed = finish.tokens_per_second
    return {
        "route": str(finish.route),
        "hops": len(finish.route.stages),
        "ttft_ms": round(finish.ttft_seconds * 1000, 1),
        "tokens_per_second": None if speed is None else round(speed, 2),
    }
