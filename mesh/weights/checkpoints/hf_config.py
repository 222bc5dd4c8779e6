"""A Hugging Face ``config.json`` read as a LlamaConfig, or refused by name.

Both spellings are understood: transformers 4 (``rope_theta``, ``rope_scaling``) and 5 (``rope_parameters``). A pure
function of parsed JSON.

Follows transformers' ``configuration_llama.py``, ``_mistral``, ``_qwen2`` and ``_qwen3`` for meaning and defaults,
``modeling_rope_utils.py`` for RoPE.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mesh.architecture import LlamaConfig, RopeConfig
from mesh.errors import CheckpointUnsupported

_DEFAULT_THETA = 10000.0


@dataclass(frozen=True, slots=True)
class _Family:
    """What an architecture has beyond LLaMA, and what its config means by a field it leaves out."""

    model_type: str
    context_length: int
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    kv_heads: int = 0  # 0: as many as heads
    qkv_bias: bool = False
    attention_bias: bool = True  # whether its config may ask for biases on q, k, v and o
    mlp_bias: bool = False  # and on gate, up and down
    qk_norm: bool = False


_FAMILIES: Mapping[str, _Family] = {
    "LlamaForCausalLM": _Family("llama", 2048, mlp_bias=True),
    "MistralForCausalLM": _Family("mistral", 131072, kv_heads=8, attention_bias=False),
    "Qwen2ForCausalLM": _Family("qwen2", 32768, kv_heads=32, qkv_bias=True, attention_bias=False),
    "Qwen3ForCausalLM": _Family("qwen3", 32768, head_dim=128, kv_heads=32, qk_norm=True),
}
_HINTS = (
    (("Moe", "Mixtral"), "a mixture of experts is not supported"),
    (("ConditionalGeneration", "Mllama", "Vision", "VL"), "a model that sees images is not supported"),
)


def llama_config(config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> LlamaConfig:
    """Raises CheckpointUnsupported."""
    family = _family(config)
    _refuse_unless(config, "model_type", (family.model_type,))
    _refuse_unless(config, "hidden_act", ("silu",))
    attention_bias = _asked_for(config, "attention_bias", family.attention_bias)
    mlp_bias = _asked_for(config, "mlp_bias", family.mlp_bias)
    _refuse_unless(config, "quantization_config", (None,))
    hidden_size, num_heads = _integer(config, "hidden_size"), _integer(config, "num_attention_heads")
    head_dim = _integer(config, "head_dim", default=family.head_dim)
    if not head_dim:
        if num_heads < 1 or hidden_size % num_heads:
            raise CheckpointUnsupported(
                f"config.json: {num_heads} heads do not divide a hidden size of {hidden_size}"
            )
        head_dim = hidden_size // num_heads
    context_length = _integer(config, "max_position_embeddings", default=family.context_length)
    eos = (*_ids(config.get("eos_token_id")), *_ids(generation_config.get("eos_token_id")))
    return LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=_integer(config, "intermediate_size"),
        num_layers=_integer(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_integer(config, "num_key_value_heads", default=family.kv_heads or num_heads),
        head_dim=head_dim,
        vocab_size=_integer(config, "vocab_size"),
        context_length=context_length,
        rms_norm_eps=_number(config, "rms_norm_eps", default=1e-6),
        rope=_rope(config, context_length),
        tied=config.get("tie_word_embeddings") or False,
        bos_token_id=config.get("bos_token_id"),
        eos_token_ids=tuple(sorted(set(eos))),
        qkv_bias=family.qkv_bias or attention_bias,
        output_bias=attention_bias,
        mlp_bias=mlp_bias,
        qk_norm=family.qk_norm,
        sliding_window=_sliding_window(config, family, context_length),
    )


def _family(config: Mapping[str, Any]) -> _Family:
    architectures = config.get("architectures")
    match architectures:
        case [str(name)] if name in _FAMILIES:
            return _FAMILIES[name]
    text = str(architectures)[:80]
    hint = next((hint for parts, hint in _HINTS if any(part in text for part in parts)), "not supported")
    raise CheckpointUnsupported(
        f"config.json architectures {text}: {hint}; supported: {', '.join(_FAMILIES)}"
    )


def _asked_for(config: Mapping[str, Any], key: str, is_known: bool) -> bool:
    _refuse_unless(config, key, (False, None, True) if is_known else (False, None))
    return config.get(key) is True


def _sliding_window(config: Mapping[str, Any], family: _Family, context_length: int) -> int | None:
    """Tokens that a token sees, or None if that is the whole context."""
    if family.model_type == "mistral":
        if config.get("sliding_window", ...) is None:
            return None
        window = _integer(config, "sliding_window", default=4096)
        return window if window < context_length else None
    # Qwen's files state a window that is off; where it is on, only some layers have it.
    _refuse_unless(config, "use_sliding_window", (False, None))
    kinds = config.get("layer_types") or ()
    if other := sorted({str(kind)[:40] for kind in kinds} - {"full_attention"}):
        raise CheckpointUnsupported(f"config.json layer_types: layers of {other[0]} are not supported")
    return None


def _rope(config: Mapping[str, Any], context_length: int) -> RopeConfig:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise CheckpointUnsupported(f"config.json RoPE parameters {str(rope)[:80]}: expected an object")
    theta = _number(rope, "rope_theta", default=_number(config, "rope_theta", default=_DEFAULT_THETA))
    for where in (config, rope):
        if where.get("partial_rotary_factor", 1.0) != 1.0:
            raise CheckpointUnsupported(
                "config.json partial_rotary_factor: RoPE over a part of a head is not supported"
            )
    kind = rope.get("rope_type", rope.get("type", "default"))  # `type` until transformers 4.43
    if kind == "linear":
        return RopeConfig(theta=theta, kind="linear", factor=_number(rope, "factor"))
    if kind == "llama3":
        return RopeConfig(
            theta=theta,
            kind="llama3",
            factor=_number(rope, "factor"),
            low_freq_factor=_number(rope, "low_freq_factor"),
            high_freq_factor=_number(rope, "high_freq_factor"),
            original_context_length=_integer(rope, "original_max_position_embeddings"),
        )
    if kind == "yarn":
        return _yarn(rope, theta, context_length)
    return RopeConfig(theta=theta, kind=str(kind)[:40])  # refuses what is not "default" by name


def _yarn(rope: Mapping[str, Any], theta: float, context_length: int) -> RopeConfig:
    _refuse_unless(rope, "truncate", (True, None))
    factor = _number(rope, "factor")
    return RopeConfig(
        theta=theta,
        kind="yarn",
        factor=factor,
        original_context_length=_integer(rope, "original_max_position_embeddings", default=context_length),
        beta_fast=_number(rope, "beta_fast", default=32.0),
        beta_slow=_number(rope, "beta_slow", default=1.0),
        attention_factor=_attention_factor(rope, factor),
    )


def _attention_factor(rope: Mapping[str, Any], factor: float) -> float:
    if rope.get("attention_factor") is not None:
        return _number(rope, "attention_factor")

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    above, below = _number(rope, "mscale", default=0.0), _number(rope, "mscale_all_dim", default=0.0)
    return scale(above) / scale(below) if above and below else scale(1.0)


def _refuse_unless(config: Mapping[str, Any], key: str, allowed: tuple[Any, ...]) -> None:
    """``key`` may be absent or one of ``allowed``."""
    if key in config and config[key] not in allowed:
        raise CheckpointUnsupported(f"config.json {key} {str(config[key])[:80]} is not supported")


def _integer(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = default if values.get(key) is None else values[key]
    if type(value) is not int:
        raise CheckpointUnsupported(f"config.json {key} is {'missing' if value is None else str(value)[:80]}")
    return value


def _number(values: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = default if values.get(key) is None else values[key]
    if type(value) not in (int, float):
        raise CheckpointUnsupported(f"config.json {key} is {'missing' if value is None else str(value)[:80]}")
    return float(value)  # type: ignore[arg-type]


def _ids(value: Any) -> Iterable[int]:
    if value is None:
        return ()
    ids: list[int] = value if isinstance(value, list) else [value]
    if any(type(id_) is not int for id_ in ids):
        raise CheckpointUnsupported(f"eos_token_id {str(value)[:80]}: expected token ids")
    return ids
