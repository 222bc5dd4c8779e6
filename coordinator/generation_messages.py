"""Generation over gRPC, in words: messages to values and back. Pure; whatever is out of bounds is a RequestRefused."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Mapping
from typing import Any

from coordinator.api.fields import LEAST_TOP_P, MAX_ANSWERS, MAX_STOP_IDS, MAX_STOP_STRINGS, choice_seed
from coordinator.generation import (
    CallEvent,
    Chat,
    Event,
    FinishEvent,
    GenerationRequest,
    Prompt,
    PromptEvent,
    ScoredToken,
)
from coordinator.token_pipeline import MaskSource
from mesh.errors import RequestRefused
from mesh.model.sampling import MAX_BIASED_TOKENS, MAX_TOP_LOGPROBS, SamplingParams
from mesh.wire import generation_pb2

ROLES = ("system", "user", "assistant", "tool")

# What may be asked of numbers: (field, least, most).
_BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("top_k", 0, (1 << 31) - 1),
    ("min_p", 0, 1),
    ("repetition_penalty", 0.01, 100),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("top_logprobs", 0, MAX_TOP_LOGPROBS),
)


def to_generation_requests(
    message: generation_pb2.GenerateRequest,
    request_id: str,
    vocab_size: int,
    grammar: MaskSource | None,
) -> list[GenerationRequest]:
    """One for each answer."""
    answers = message.answers or 1
    if answers > MAX_ANSWERS:
        raise _out_of_bounds("answers", answers, 1, MAX_ANSWERS)
    if len(message.stop) > MAX_STOP_STRINGS or not all(message.stop):
        raise RequestRefused(f"stop: expected at most {MAX_STOP_STRINGS} texts, none empty", param="stop")
    if len(message.stop_token_ids) > MAX_STOP_IDS:
        raise _out_of_bounds("stop_token_ids", len(message.stop_token_ids), 0, MAX_STOP_IDS)
    if message.HasField("max_tokens") and not 1 <= message.max_tokens < 1 << 31:
        raise _out_of_bounds("max_tokens", message.max_tokens, 1, (1 << 31) - 1)
    prompt, sampling = _prompt(message, vocab_size), _sampling(message.sampling, vocab_size)
    return [
        GenerationRequest(
            request_id=request_id,
            prompt=prompt,
            sampling=dataclasses.replace(sampling, seed=choice_seed(sampling.seed, choice)),
            max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
            stop=tuple(message.stop),
            stop_ids=frozenset(message.stop_token_ids),
            ignore_eos=message.ignore_eos,
            grammar=grammar,
            choice=choice,
        )
        for choice in range(answers)
    ]


def schema_of(message: generation_pb2.GenerateRequest) -> Mapping[str, Any] | None:
    """The JSON schema that the answer must follow, if one was given."""
    if not message.json_schema:
        return None
    try:
        schema = json.loads(message.json_schema)
    except (ValueError, RecursionError) as exc:
        raise RequestRefused(f"json_schema is not JSON: {exc}", param="json_schema") from exc
    if not isinstance(schema, dict):
        raise RequestRefused("json_schema: expected a JSON object", param="json_schema")
    return schema


def to_event(event: Event, fingerprint: str) -> generation_pb2.GenerateEvent:
    assert not isinstance(event, PromptEvent | CallEvent), "nobody asked for an echo, nobody reads calls"
    if isinstance(event, FinishEvent):
        finish = generation_pb2.Finish(
            reason=generation_pb2.Finish.STOP if event.reason == "stop" else generation_pb2.Finish.LENGTH,
            prompt_tokens=event.usage.prompt_tokens,
            completion_tokens=event.usage.completion_tokens,
            route=str(event.route),
            ttft_seconds=event.ttft_seconds,
            tokens_per_second=event.tokens_per_second,
            fingerprint=fingerprint,
        )
        return generation_pb2.GenerateEvent(answer=event.choice, finish=finish)
    text = generation_pb2.TextDelta(text=event.text, tokens=map(_scored, event.tokens))
    return generation_pb2.GenerateEvent(answer=event.choice, text=text)


def _scored(token: ScoredToken) -> generation_pb2.ScoredToken:
    return generation_pb2.ScoredToken(
        token_id=token.token_id,
        logprob=token.logprobs.logprob,
        top=[
            generation_pb2.LikelyToken(token_id=token_id, logprob=logprob)
            for token_id, logprob in token.logprobs.top
        ],
    )


def _prompt(message: generation_pb2.GenerateRequest, vocab_size: int) -> Prompt:
    match message.WhichOneof("prompt"):
        case "chat":
            for index, each in enumerate(message.chat.messages):
                if each.role not in ROLES:
                    raise RequestRefused(
                        f"chat.messages[{index}].role {each.role[:40]!r}: expected one of {', '.join(ROLES)}",
                        param=f"chat.messages[{index}].role",
                    )
            if not message.chat.messages:
                raise RequestRefused("chat.messages is empty; expected at least one", param="chat")
            return Chat([{"role": each.role, "content": each.content} for each in message.chat.messages])
        case "text":
            return message.text
        case "token_ids":
            ids = tuple(message.token_ids.ids)
            if ids and max(ids) >= vocab_size:
                raise RequestRefused(
                    f"token_ids: {max(ids)} is not in the model's vocabulary of {vocab_size}",
                    param="token_ids",
                )
            return ids
    raise RequestRefused("no prompt: expected chat, text or token_ids", param="prompt")


def _sampling(wire: generation_pb2.Sampling, vocab_size: int) -> SamplingParams:
    for name, least, most in _BOUNDS:
        value = getattr(wire, name)
        is_given = name not in ("temperature", "top_p", "repetition_penalty") or wire.HasField(name)
        if is_given and not least <= value <= most:  # also refuses what is no number
            raise _out_of_bounds(f"sampling.{name}", value, least, most)
    if len(wire.logit_bias) > MAX_BIASED_TOKENS or any(
        token_id >= vocab_size or not -100 <= bias <= 100 for token_id, bias in wire.logit_bias.items()
    ):
        raise RequestRefused(
            f"sampling.logit_bias: expected at most {MAX_BIASED_TOKENS} tokens below {vocab_size}, -100 to 100 each",
            param="sampling.logit_bias",
        )
    return SamplingParams(
        temperature=wire.temperature if wire.HasField("temperature") else 1.0,
        top_p=max(wire.top_p, LEAST_TOP_P) if wire.HasField("top_p") else 1.0,
        seed=wire.seed if wire.HasField("seed") else secrets.randbits(64),
        top_k=wire.top_k,
        min_p=wire.min_p,
        repetition_penalty=wire.repetition_penalty if wire.HasField("repetition_penalty") else 1.0,
        presence_penalty=wire.presence_penalty,
        frequency_penalty=wire.frequency_penalty,
        logit_bias=tuple(sorted(wire.logit_bias.items())),
        top_logprobs=wire.top_logprobs if wire.HasField("top_logprobs") else None,
    )


def _out_of_bounds(name: str, value: float, least: float, most: float) -> RequestRefused:
    return RequestRefused(f"{name} {value:g}: expected {least:g} to {most:g}", param=name)
