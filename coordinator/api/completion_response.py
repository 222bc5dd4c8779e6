"""Completions as OpenAI clients read them, with the log-probabilities that evaluations are made of. Pure.

``logprobs`` tells of every token: with ``echo`` the prompt's too (of its first, which nothing comes before, ``null``),
and of the end token, so that there are as many as the usage counts. ``text_offset`` counts characters of the tokens' own
text, the prompt's included where it is echoed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from coordinator.api.answer import AnswerHead, json_logprob, mesh_object, token_text, usage
from coordinator.api.errors import Failure
from coordinator.generation import Event, FinishEvent, PromptEvent, ScoredToken, TextEvent
from mesh.model.logprobs import TokenLogprobs
from mesh.model.tokenizer import Tokenizer


@dataclass(slots=True)
class _Told:
    """One answer's events, put together."""

    text: str = ""
    scored: list[tuple[int, TokenLogprobs | None]] = field(
        default_factory=list
    )  # token id, None for the first
    sampled: list[ScoredToken] = field(default_factory=list)
    finish: FinishEvent | None = None
    prompt_ids: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()

    @property
    def mean_logprob(self) -> float:
        """By which answers are ranked."""
        total = sum(scored.logprobs.logprob for scored in self.sampled)
        return total / max(len(self.sampled), 1)


@dataclass(slots=True)
class CompletionAnswer:
    """The dialect of ``/v1/completions``. Keeps, for a stream, how far each choice's text has come."""

    head: AnswerHead
    tokenizer: Tokenizer
    prompts: Sequence[str | tuple[int, ...]]
    answers_per_prompt: int  # best_of
    choices_per_prompt: int  # n
    has_logprobs: bool
    echoes: bool = True  # the prompt is part of the text
    tells_ids: bool = False
    has_event_names: ClassVar[bool] = False
    _offsets: dict[int, int] = field(default_factory=dict)  # by choice: characters of token text so far

    @property
    def answers(self) -> int:
        return len(self.prompts) * self.answers_per_prompt

    def body(self, events: Sequence[Event]) -> dict[str, Any]:
        """The whole answer of a request that does not stream."""
        told = [_Told() for _ in range(self.answers)]
        for event in events:
            self._tell(told[event.choice], event)
        best: list[_Told] = []
        for first in range(0, self.answers, self.answers_per_prompt):
            of_prompt = told[first : first + self.answers_per_prompt]
            if self.choices_per_prompt < self.answers_per_prompt:  # stable: of equals the first
                of_prompt = sorted(of_prompt, key=lambda each: each.mean_logprob, reverse=True)
            best += of_prompt[: self.choices_per_prompt]
        finishes = [each.finish for each in told if each.finish is not None]
        return {
            **self.head.of("text_completion"),
            "choices": [self._body_choice(index, each) for index, each in enumerate(best)],
            "usage": usage(finishes, self.answers_per_prompt),
            "mesh": mesh_object(finishes[0]),
        }

    def opening(self) -> list[dict[str, Any]]:
        return []

    def chunks(self, event: Event) -> list[dict[str, Any]]:
        if isinstance(event, FinishEvent):
            return [self._chunk(event.choice, "", None, event.reason)]
        part = _Told()
        self._tell(part, event)
        offset = self._offsets.get(event.choice, 0)
        logprobs, self._offsets[event.choice] = self._logprobs(part.scored, offset)
        chunk = self._chunk(event.choice, part.text, logprobs)
        if self.tells_ids:
            chunk["choices"][0] |= _ids(part)
        return [chunk]

    def closing(self, finishes: Sequence[FinishEvent], include_usage: bool) -> list[dict[str, Any]]:
        head = self.head.of("text_completion")
        told = {**head, "choices": [], "usage": usage(finishes, self.answers_per_prompt)}
        return [told] if include_usage else []

    def failure(self, failure: Failure, request_id: str) -> list[dict[str, Any]]:
        return [failure.body()]

    def _tell(self, told: _Told, event: Event) -> None:
        match event:
            case PromptEvent():
                told.prompt_ids = event.ids
                if not self.echoes:
                    return
                prompt = self.prompts[event.choice // self.answers_per_prompt]
                if not isinstance(prompt, str):
                    prompt = self.tokenizer.decode(event.ids, show_special=True)
                told.text += prompt
                told.scored += zip(event.ids, (None, *event.logprobs), strict=False)
            case TextEvent():
                told.text += event.text
                told.ids += event.ids
                told.sampled += event.tokens
                told.scored += [(scored.token_id, scored.logprobs) for scored in event.tokens]
            case FinishEvent():
                told.finish = event

    def _body_choice(self, index: int, told: _Told) -> dict[str, Any]:
        assert told.finish is not None
        logprobs, _ = self._logprobs(told.scored, 0)
        choice = _choice(index, told.text, logprobs, told.finish.reason)
        return choice | _ids(told) if self.tells_ids else choice

    def _chunk(
        self, choice: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        return {
            **self.head.of("text_completion"),
            "choices": [_choice(choice, text, logprobs, finish_reason)],
        }

    def _logprobs(
        self, scored: Sequence[tuple[int, TokenLogprobs | None]], offset: int
    ) -> tuple[dict[str, Any] | None, int]:
        """The columns of OpenAI's older form, and where the text after them begins."""
        if not self.has_logprobs:
            return None, offset
        tokens = [self._text(token_id) for token_id, _ in scored]
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        told = [logprobs for _, logprobs in scored]
        return {
            "text_offset": offsets,
            "tokens": tokens,
            "token_logprobs": [None if each is None else json_logprob(each.logprob) for each in told],
            "top_logprobs": [None if each is None else self._top(each) for each in told],
        }, offset

    def _top(self, logprobs: TokenLogprobs) -> dict[str, float]:
        """Of two tokens with the same text the likelier; clients look for the largest."""
        top: dict[str, float] = {}
        for token_id, logprob in logprobs.top:
            top.setdefault(self._text(token_id), json_logprob(logprob))
        return top

    def _text(self, token_id: int) -> str:
        return token_text(self.tokenizer.token_bytes(token_id))


def _ids(told: _Told) -> dict[str, list[int]]:
    """As vLLM tells them."""
    prompt = {"prompt_token_ids": list(told.prompt_ids)} if told.prompt_ids else {}
    return {**prompt, "token_ids": list(told.ids)}


def _choice(
    index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
