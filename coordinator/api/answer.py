"""What every dialect of answer shares: its head, its usage, and the seam by which ``answering`` sends it. Pure.

Our own ``mesh`` object (route, hops, speed) rides on the last chunk or the body: clients keep unknown fields, but
an event of our own would crash them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from coordinator.api.errors import Failure
from coordinator.generation import Event, FinishEvent, ScoredToken
from mesh.model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What all parts of one answer share."""

    id: str
    created: int  # seconds since the Unix epoch
    model: str
    fingerprint: str

    def of(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


class Answer(Protocol):
    """A dialect: events in, JSON out."""

    @property
    def answers(self) -> int:
        """How many FinishEvents there will be."""

    def body(self, events: Sequence[Event]) -> dict[str, Any]:
        """The whole answer of a request that does not stream."""

    def opening(self) -> list[dict[str, Any]]:
        """Chunks that are sent before anything is known."""

    def chunks(self, event: Event) -> list[dict[str, Any]]:
        """Chunks of one event; the last of a choice's finish says why it ended."""

    def closing(self, finishes: Sequence[FinishEvent], include_usage: bool) -> list[dict[str, Any]]:
        """Chunks behind the last choice's finish."""

    def failure(self, failure: Failure, request_id: str) -> list[dict[str, Any]]:
        """Chunks that end a stream which cannot go on."""

    @property
    def has_event_names(self) -> bool:
        """Each chunk travels under its own ``type``; else under none, and ``[DONE]`` comes behind the last."""


def usage(finishes: Sequence[FinishEvent], answers_per_prompt: int) -> dict[str, int]:
    """A prompt counts once, however many answers it got."""
    prompt = sum(each.usage.prompt_tokens for each in finishes if each.choice % answers_per_prompt == 0)
    completion = sum(each.usage.completion_tokens for each in finishes)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def mesh_object(finish: FinishEvent) -> dict[str, Any]:
    speed = finish.tokens_per_second
    return {
        "route": str(finish.route),
        "hops": len(finish.route.stages),
        "recoveries": finish.recoveries,
        "ttft_ms": round(finish.ttft_seconds * 1000, 1),
        "tokens_per_second": None if speed is None else round(speed, 2),
    }


def token_text(token: bytes) -> str:
    """A token as OpenAI spells it where text and bytes part."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def scored_json(tokenizer: Tokenizer, scored: ScoredToken) -> dict[str, Any]:
    """A token with its log-probability and the likeliest in its place."""
    top = [_token(tokenizer, *likely) for likely in scored.logprobs.top]
    return {**_token(tokenizer, scored.token_id, scored.logprobs.logprob), "top_logprobs": top}


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    token = tokenizer.token_bytes(token_id)
    return {"token": token_text(token), "logprob": json_logprob(logprob), "bytes": list(token)}


def json_logprob(logprob: float) -> float:
    """JSON has no infinity; OpenAI's stand-in for it."""
    return max(logprob, -9999.0)
