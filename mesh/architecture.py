"""What a LLaMA-family model is made of: its sizes, its RoPE, its special tokens.

A pure value, checked once when made, carried by the signed manifest and trusted everywhere after. It knows nothing of
files or of torch. Field names are Hugging Face's where one exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mesh.errors import CheckpointUnsupported, ManifestInvalid

ROPE_KINDS = ("default", "linear", "llama3", "yarn")


def _optional(default: Any) -> Any:
    """A field that JSON leaves out at its default: what was written before it existed keeps its bytes."""
    return field(default=default, metadata={"optional": True})


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and how it was stretched.

    ``linear`` divides positions by ``factor`` (Chen et al. 2023); ``llama3`` divides only the low frequencies
    (Llama 3.1's reference ``apply_scaling``); ``yarn`` blends by how often a pair turns within the original context, and
    multiplies cosines and sines by ``attention_factor`` (Peng et al. 2023, arXiv 2309.00071).
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192
    beta_fast: float = _optional(32.0)  # turns: pairs that make more keep their frequency
    beta_slow: float = _optional(1.0)  # turns: of pairs that make fewer it is divided by the factor
    attention_factor: float = _optional(1.0)

    def __post_init__(self) -> None:
        if self.kind not in ROPE_KINDS:
            raise CheckpointUnsupported(
                f"RoPE scaling {self.kind!r} is not supported; supported: {', '.join(ROPE_KINDS)}"
            )
        _number("rope.theta", self.theta, 1.0, 1e12)
        _number("rope.factor", self.factor, 1.0, 1e4)
        _number("rope.low_freq_factor", self.low_freq_factor, 1e-6, 1e6)
        _number("rope.high_freq_factor", self.high_freq_factor, 1e-6, 1e6)
        _integer("rope.original_context_length", self.original_context_length, 1, 1 << 24)
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise CheckpointUnsupported("RoPE scaling 'llama3': high_freq_factor must exceed low_freq_factor")
        _number("rope.beta_fast", self.beta_fast, 1e-3, 1e6)
        _number("rope.beta_slow", self.beta_slow, 1e-3, 1e6)
        _number("rope.attention_factor", self.attention_factor, 1e-3, 1e3)
        if self.beta_fast <= self.beta_slow:
            raise CheckpointUnsupported("RoPE scaling 'yarn': beta_fast must exceed beta_slow")
        if self.kind == "yarn" and self.theta <= 1:
            raise CheckpointUnsupported("RoPE scaling 'yarn': theta must exceed 1")


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes of one LLaMA-shaped decoder. ``head_dim`` is independent of ``hidden_size / num_heads``."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int  # tokens, prompt and answer together
    rms_norm_eps: float
    rope: RopeConfig
    tied: bool  # lm_head shares embed_tokens' weights
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    qkv_bias: bool = _optional(False)  # Qwen2
    output_bias: bool = _optional(False)  # on o_proj
    mlp_bias: bool = _optional(False)
    qk_norm: bool = _optional(False)  # RMSNorm of each query and key head before RoPE: Qwen3
    sliding_window: int | None = _optional(None)  # tokens that a token sees, itself included: Mistral

    def __post_init__(self) -> None:
        _integer("hidden_size", self.hidden_size, 1, 1 << 17)
        _integer("intermediate_size", self.intermediate_size, 1, 1 << 19)
        _integer("num_layers", self.num_layers, 1, 1024)
        _integer("num_heads", self.num_heads, 1, 1024)
        _integer("num_kv_heads", self.num_kv_heads, 1, self.num_heads)
        _integer("head_dim", self.head_dim, 2, 1024)
        _integer("vocab_size", self.vocab_size, 1, 1 << 21)
        _integer("context_length", self.context_length, 1, 1 << 24)
        _number("rms_norm_eps", self.rms_norm_eps, 1e-12, 1.0)
        if self.num_heads % self.num_kv_heads:
            raise CheckpointUnsupported(
                f"config num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise CheckpointUnsupported(f"config head_dim={self.head_dim} is odd; RoPE turns pairs")
        for name in ("tied", "qkv_bias", "output_bias", "mlp_bias", "qk_norm"):
            if type(value := getattr(self, name)) is not bool:
                raise CheckpointUnsupported(f"config {name}={value!r}: expected true or false")
        if self.sliding_window is not None:
            _integer("sliding_window", self.sliding_window, 1, self.context_length - 1)
        if len(self.eos_token_ids) > 64:
            raise CheckpointUnsupported(
                f"config has {len(self.eos_token_ids)} EOS ids, at most 64 are sensible"
            )
        for token_id in (*self.eos_token_ids, *(() if self.bos_token_id is None else (self.bos_token_id,))):
            _integer("special token id", token_id, 0, self.vocab_size - 1)

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def to_json(self) -> dict[str, Any]:
        """A value for ``strict_json.dumps``; ``from_json`` is its inverse."""
        return {
            **_without_defaults(self),
            "rope": _without_defaults(self.rope),
            "eos_token_ids": list(self.eos_token_ids),
        }

    @classmethod
    def from_json(cls, value: object) -> LlamaConfig:
        """Raises ManifestInvalid on a missing or unknown field, CheckpointUnsupported on a value out of bounds."""
        given = _exact_fields(cls, "model config", value)
        given["rope"] = RopeConfig(**_exact_fields(RopeConfig, "model config rope", given["rope"]))
        if not isinstance(given["eos_token_ids"], list):
            raise ManifestInvalid("model config eos_token_ids: expected a list")
        given["eos_token_ids"] = tuple(given["eos_token_ids"])
        return cls(**given)


def _without_defaults(value: LlamaConfig | RopeConfig) -> dict[str, Any]:
    omitted = {
        each.name
        for each in fields(value)
        if each.metadata.get("optional") and getattr(value, each.name) == each.default
    }
    return {name: held for name, held in asdict(value).items() if name not in omitted}


def _exact_fields(kind: type, where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ManifestInvalid(f"{where}: expected an object")
    known = {each.name: each for each in fields(kind)}
    needed = {name for name, each in known.items() if not each.metadata.get("optional")}
    if wrong := (needed - value.keys()) | (value.keys() - known.keys()):
        raise ManifestInvalid(f"{where}: missing or unknown field {min(map(str, wrong))!r}")
    return dict(value)


def _integer(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:  # bool is an int to isinstance
        raise CheckpointUnsupported(f"config {name}={value!r}: expected an integer from {low} to {high}")


def _number(name: str, value: object, low: float, high: float) -> None:
    if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
        raise CheckpointUnsupported(f"config {name}={value!r}: expected a number from {low:g} to {high:g}")
