"""What a LLaMA-family model is made of: its sizes, its RoPE, its special tokens.

A pure value, checked once when made, carried by the signed manifest and trusted everywhere after. It knows nothing of
files or of torch. Field names are Hugging Face's where one exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mesh.errors import CheckpointUnsupported, ManifestInvalid

ROPE_KINDS = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and how it was stretched.

    ``linear`` divides positions by ``factor`` (Chen et al. 2023); ``llama3`` divides only the low frequencies
    (Llama 3.1's reference ``apply_scaling``).
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192

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
        if type(self.tied) is not bool:
            raise CheckpointUnsupported(f"config tied={self.tied!r}: expected true or false")
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
        return {**asdict(self), "eos_token_ids": list(self.eos_token_ids)}

    @classmethod
    def from_json(cls, value: object) -> LlamaConfig:
        """Raises ManifestInvalid on a missing or unknown field, CheckpointUnsupported on a value out of bounds."""
        given = _exact_fields(cls, "model config", value)
        given["rope"] = RopeConfig(**_exact_fields(RopeConfig, "model config rope", given["rope"]))
        if not isinstance(given["eos_token_ids"], list):
            raise ManifestInvalid("model config eos_token_ids: expected a list")
        given["eos_token_ids"] = tuple(given["eos_token_ids"])
        return cls(**given)


def _exact_fields(kind: type, where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ManifestInvalid(f"{where}: expected an object")
    wanted = {field.name for field in fields(kind)}
    if wrong := wanted.symmetric_difference(value):
        raise ManifestInvalid(f"{where}: missing or unknown field {min(map(str, wrong))!r}")
    return dict(value)


def _integer(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:  # bool is an int to isinstance
        raise CheckpointUnsupported(f"config {name}={value!r}: expected an integer from {low} to {high}")


def _number(name: str, value: object, low: float, high: float) -> None:
    if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
        raise CheckpointUnsupported(f"config {name}={value!r}: expected a number from {low:g} to {high:g}")
