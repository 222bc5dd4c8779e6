"""A completion request, after OpenAI's ``CreateCompletionRequest``: the older dialect, which evaluations speak.

A prompt is text or token ids, or a list of either; every prompt gets ``n`` answers, the best of ``best_of``.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import Field, PlainValidator

from coordinator.api.fields import MAX_ANSWERS, AnswerFields, choice_seed, hold_longer, unicode_text
from coordinator.generation import GenerationRequest
from coordinator.serving import ServedModel
from coordinator.token_pipeline import MaskSource
from mesh.errors import RequestRefused
from mesh.model.sampling import MAX_TOP_LOGPROBS

DEFAULT_MAX_TOKENS = 16  # OpenAI's


def _as_prompts(value: Any) -> list[str | tuple[int, ...]]:
    """The four forms of a prompt as one: a list of texts and token ids."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value:
        raise ValueError("expected text, token ids, or a list of either that is not empty")
    if _are_ids(value):
        value = [value]
    if len(value) > MAX_ANSWERS:
        raise ValueError(f"{len(value)} prompts, expected at most {MAX_ANSWERS}")
    if all(isinstance(prompt, str) for prompt in value):
        return [unicode_text(prompt) for prompt in value]
    if all(isinstance(prompt, list) and prompt and _are_ids(prompt) for prompt in value):
        return [tuple(prompt) for prompt in value]
    raise ValueError("expected text, token ids, or a list of either")


def _are_ids(value: list[Any]) -> bool:
    return all(isinstance(each, int) and not isinstance(each, bool) for each in value)


class CompletionRequest(AnswerFields):
    prompt: Annotated[
        list[str | tuple[int, ...]],
        PlainValidator(_as_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ]
    max_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, description=f"{DEFAULT_MAX_TOKENS} if absent; 0 only with echo."
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None

    @property
    def answers(self) -> int:
        """Sessions for each prompt."""
        return max(self.n or 1, self.best_of or 1)

    @property
    def is_ranked(self) -> bool:
        return self.answers > (self.n or 1)


def to_generation_requests(
    completion: CompletionRequest, request_id: str, model: ServedModel, grammar: MaskSource | None
) -> list[GenerationRequest]:
    """One for each answer, prompt by prompt. Raises RequestRefused for what the types cannot say."""
    vocab_size = model.manifest.config.vocab_size
    completion.check(vocab_size)
    _check_together(completion, vocab_size)
    grammar = hold_longer(completion, model, grammar)
    # Answers are ranked by their log-probabilities, whether the client wants to see them or not.
    top = 0 if completion.logprobs is None and completion.is_ranked else completion.logprobs
    sampling = completion.sampling(top)
    return [
        GenerationRequest(
            request_id=request_id,
            prompt=prompt,
            sampling=dataclasses.replace(sampling, seed=choice_seed(sampling.seed, answer)),
            max_tokens=_max_tokens(completion),
            stop=tuple(completion.stop or ()),
            stop_ids=frozenset(completion.stop_token_ids or ()),
            ignore_eos=bool(completion.ignore_eos),
            min_tokens=completion.min_tokens or 0,
            grammar=grammar,
            tell_ids=bool(completion.return_token_ids),
            echo=bool(completion.echo or completion.return_token_ids),
            prompt_logprobs=completion.logprobs if completion.echo else None,
            choice=index * completion.answers + answer,
        )
        for index, prompt in enumerate(completion.prompt)
        for answer in range(completion.answers)
    ]


def _max_tokens(completion: CompletionRequest) -> int:
    return DEFAULT_MAX_TOKENS if completion.max_tokens is None else completion.max_tokens


def _check_together(completion: CompletionRequest, vocab_size: int) -> None:
    if completion.best_of is not None and completion.best_of < (completion.n or 1):
        raise RequestRefused("best_of is less than n; expected at least as many", param="best_of")
    if completion.stream and completion.is_ranked:
        raise RequestRefused(
            "best_of more than n cannot be streamed: the best is known last", param="best_of"
        )
    if len(completion.prompt) * completion.answers > MAX_ANSWERS:
        raise RequestRefused(
            f"{len(completion.prompt)} prompts with {completion.answers} answers each, "
            f"expected at most {MAX_ANSWERS} in all",
            param="n",
        )
    if (completion.min_tokens or 0) > _max_tokens(completion):
        raise RequestRefused("min_tokens is more than max_tokens", param="min_tokens")
    if completion.max_tokens == 0 and not completion.echo:
        raise RequestRefused("max_tokens 0 without echo asks for nothing", param="max_tokens")
    for prompt in completion.prompt:
        if not isinstance(prompt, str) and not (min(prompt) >= 0 and max(prompt) < vocab_size):
            raise RequestRefused(
                f"prompt: a token id is not in the vocabulary of {vocab_size}", param="prompt"
            )
