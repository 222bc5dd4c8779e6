"""The fields that chat completions and completions share: how tokens are drawn, where answers end, how they travel.

A field that would change the answer is honoured or refused by name, never silently dropped; fields that clients send
unasked and that change nothing (``user``, ``metadata``, ``store``, ``service_tier``, …), and fields nobody has heard of,
are ignored. ``null`` means absent, as with OpenAI.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from coordinator.least_tokens import LeastTokens
from coordinator.serving import ServedModel
from coordinator.token_pipeline import MaskSource
from mesh.errors import RequestRefused
from mesh.model.sampling import MAX_BIASED_TOKENS, SamplingParams

MAX_STOP_STRINGS = 16  # OpenAI allows 4; agents send more
MAX_STOP_CHARACTERS = 1024
MAX_STOP_IDS = 1024
MAX_ANSWERS = 128  # to one request: OpenAI's bound of ``n``, here of all its prompts together
MAX_TIMEOUT_SECONDS = 24 * 3600

# Keeps the likeliest token alone of any vocabulary below a million; less would be 0 in the wire's 32 bits.
LEAST_TOP_P = 1e-6

_SEED_BITS = 64
_MAX_INT = (1 << 31) - 1

# Not honoured: name -> values that ask for nothing. Any other value is refused.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),  # of completions: chat has them
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "suffix": ("",),
    # The vocabulary of local servers (llama.cpp, vLLM), sent through the client's ``extra_body``.
    "typical_p": (1,),
    "repeat_penalty": (1,),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}


def unicode_text(text: str) -> str:
    """JSON can spell half a surrogate pair, which no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError("not Unicode text: a surrogate without its other half") from exc
    return text


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


Text = Annotated[str, AfterValidator(unicode_text)]
StopString = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
TokenId = Annotated[int, Field(ge=0, le=_MAX_INT)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Lenient(BaseModel):
    """Ignores unknown fields but not wrong types: ``"temperature": "hot"`` is an error, not a guess."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class StreamOptions(Lenient):
    include_usage: bool | None = None


class StructuredOutputs(Lenient):
    """vLLM's."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: Text | None = None
    choice: list[Text] | None = None
    grammar: Text | None = None
    json_object: bool | None = None
    structural_tag: Any = None


class AnswerFields(BaseModel):
    """What can be asked of an answer, whatever it answers."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: Text
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=_MAX_INT)] | None = Field(
        None, description="0 and -1 keep every token."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^[0-9]{1,9}$")],
                Annotated[float, Field(ge=-100, le=100)],
            ],
            Field(max_length=MAX_BIASED_TOKENS),
        ]
        | None
    ) = Field(None, description="By token id, what is added to its logit.")
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << _SEED_BITS)] | None = Field(
        None, description="The same seed, request and system_fingerprint give the same answer."
    )
    stop: Annotated[
        Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None,
        BeforeValidator(_as_list, json_schema_input_type=str | list[str] | None),
    ] = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_IDS)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, le=_MAX_INT)] | None = Field(
        None, description="Before so many tokens nothing ends the answer."
    )
    return_token_ids: bool | None = None
    grammar: Text | None = Field(None, description="Lark, as llguidance writes it, or llama.cpp's GBNF.")
    json_schema: dict[str, Any] | None = Field(None, description="llama.cpp's: of the answer.")
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = Field(
        None, description="This and its like are vLLM's older names."
    )
    guided_regex: Text | None = None
    guided_choice: list[Text] | None = None
    guided_grammar: Text | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    timeout: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_SECONDS)] | None = Field(
        None, description="Seconds after which the answer is given up, with 504 or an error in the stream."
    )

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self, vocab_size: int) -> None:
        """Raises RequestRefused for what the types cannot say."""
        for name, value in (self.model_extra or {}).items():
            if name in _UNSUPPORTED and value is not None and value not in _UNSUPPORTED[name]:
                raise RequestRefused(
                    f"{name} is not supported by this mesh yet; leave it out",
                    code="unsupported_parameter",
                    param=name,
                )
        if self.stream_options is not None and not self.stream:
            raise RequestRefused("stream_options is only allowed when stream is true", param="stream_options")
        if self.ignore_eos and self.min_tokens:
            raise RequestRefused("min_tokens with ignore_eos asks for nothing more", param="min_tokens")
        if stray := [each for each in self.stop_token_ids or () if each >= vocab_size]:
            raise RequestRefused(
                f"stop_token_ids: token {stray[0]} is not in the model's vocabulary of {vocab_size}",
                param="stop_token_ids",
            )
        for token_id in map(int, self.logit_bias or ()):
            if token_id >= vocab_size:
                raise RequestRefused(
                    f"logit_bias: token {token_id} is not in the model's vocabulary of {vocab_size}",
                    param="logit_bias",
                )

    def check_single(self) -> None:
        """For dialects in which a request has one answer."""
        if (self.n or 1) > 1:
            raise RequestRefused("n is more than 1; this dialect has one answer", param="n")

    def sampling(self, top_logprobs: int | None) -> SamplingParams:
        """Of the first choice; ``for_choice`` makes the others'."""
        # SamplingParams counts seeds without a sign; a client's -1 is a seed like any other.
        seed = secrets.randbits(_SEED_BITS) if self.seed is None else self.seed % (1 << _SEED_BITS)
        bias = {int(token_id): bias for token_id, bias in (self.logit_bias or {}).items()}
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else max(self.top_p, LEAST_TOP_P),
            seed=seed,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=tuple(bias.items()),
            top_logprobs=top_logprobs,
        )


def hold_longer(fields: AnswerFields, model: ServedModel, grammar: MaskSource | None) -> MaskSource | None:
    """The grammar, with nothing that ends the answer before ``min_tokens``."""
    if not fields.min_tokens:
        return grammar
    config = model.manifest.config
    end_ids = {*config.eos_token_ids, *(fields.stop_token_ids or ())}
    return LeastTokens(fields.min_tokens, end_ids, config.vocab_size, grammar)


def choice_seed(seed: int, choice: int) -> int:
    """Each choice draws its own numbers; the first those of a request for one, the others' look like no small seed."""
    if choice == 0:
        return seed
    digest = hashlib.sha256(f"{seed}/{choice}".encode()).digest()
    return int.from_bytes(digest[:8])
