"""What an OpenSession asks of a last stage, checked and turned into values.

Bytes from outside: sizes first, then every value. Knows the frame and the stage's contract; no session, link or engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.errors import MeshError, UsageError
from mesh.model.penalties import TokenHistory
from mesh.model.sampling import MAX_TOP_LOGPROBS, SamplingParams
from mesh.wire import stage_pb2
from node.sessions import MaskGate, PromptScoring


class BadOpening(MeshError):
    """An OpenSession whose values break their bounds."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How a last stage draws the tokens of a session, and what else it tells of them."""

    sampling: SamplingParams
    history: TokenHistory | None
    gate: MaskGate | None
    scoring: PromptScoring | None


def read_drawing(request: stage_pb2.OpenSession, vocab_size: int) -> Drawing:
    """Raises BadOpening; what a session never asks for costs it nothing."""
    # (1) sizes
    known = len(request.token_ids)
    if not request.prompt_tokens <= known <= request.max_tokens:
        raise BadOpening(
            f"{known} token ids, {request.prompt_tokens} of them the prompt, in a session of {request.max_tokens}"
        )
    # (2) values
    if known and max(request.token_ids) >= vocab_size:
        raise BadOpening(f"token id {max(request.token_ids)} outside the vocabulary of {vocab_size}")
    try:
        sampling = _sampling(request.sampling)
    except UsageError as exc:
        raise BadOpening(str(exc)) from exc
    # (3) what they ask for together
    history = scoring = None
    if sampling.needs_history:
        history = TokenHistory(request.token_ids, request.prompt_tokens, request.max_tokens)
    if request.HasField("prompt_logprobs"):
        if request.prompt_logprobs > MAX_TOP_LOGPROBS:
            raise BadOpening(
                f"prompt_logprobs {request.prompt_logprobs}: expected at most {MAX_TOP_LOGPROBS}"
            )
        scoring = PromptScoring(tuple(request.token_ids[: request.prompt_tokens]), request.prompt_logprobs)
    return Drawing(sampling, history, MaskGate() if request.masked else None, scoring)


def _sampling(wire: stage_pb2.SamplingParams) -> SamplingParams:
    if len(wire.bias_ids) != len(wire.biases):
        raise BadOpening(f"{len(wire.bias_ids)} tokens with {len(wire.biases)} biases")
    return SamplingParams(
        temperature=wire.temperature,
        top_p=wire.top_p,
        seed=wire.seed,
        top_k=wire.top_k,
        min_p=wire.min_p,
        repetition_penalty=wire.repetition_penalty if wire.HasField("repetition_penalty") else 1.0,
        presence_penalty=wire.presence_penalty,
        frequency_penalty=wire.frequency_penalty,
        logit_bias=tuple(zip(wire.bias_ids, wire.biases, strict=True)),
        top_logprobs=wire.top_logprobs if wire.HasField("top_logprobs") else None,
    )
