"""A Hugging Face ``config.json`` read as a LlamaConfig, or refused by name.

Both spellings are understood: transformers 4 (``rope_theta``, ``rope_scaling``) and 5 (``rope_parameters``). A pure
function of parsed JSON.

Follows transformers' ``configuration_llama.py`` for meaning and defaults, ``modeling_rope_utils.py`` for RoPE.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mesh.architecture import LlamaConfig, RopeConfig
from mesh.errors import CheckpointUnsupported

_DEFAULT_CONTEXT_LENGTH = 2048
_DEFAULT_THETA = 10000.0


def llama_config(config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> LlamaConfig:
    """Raises CheckpointUnsupported."""
    if (architectures := config.get("architectures")) != ["LlamaForCausalLM"]:
        raise CheckpointUnsupported(
            f"config.json architectures {str(architectures)[:80]}: not supported; supported: LlamaForCausalLM"
        )
    _refuse_unless(config, "model_type", ("llama",))
    _refuse_unless(config, "hidden_act", ("silu",))
    for key in ("attention_bias", "mlp_bias"):
        _refuse_unless(config, key, (False, None))
    _refuse_unless(config, "quantization_config", (None,))
    hidden_size, num_heads = _integer(config, "hidden_size"), _integer(config, "num_attention_heads")
    head_dim = _integer(config, "head_dim", default=0)
    if not head_dim:
        if num_heads < 1 or hidden_size % num_heads:
            raise CheckpointUnsupported(
                f"config.json: {num_heads} heads do not divide a hidden size of {hidden_size}"
            )
        head_dim = hidden_size // num_heads
    eos = (*_ids(config.get("eos_token_id")), *_ids(generation_config.get("eos_token_id")))
    return LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=_integer(config, "intermediate_size"),
        num_layers=_integer(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_integer(config, "num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        vocab_size=_integer(config, "vocab_size"),
        context_length=_integer(config, "max_position_embeddings", default=_DEFAULT_CONTEXT_LENGTH),
        rms_norm_eps=_number(config, "rms_norm_eps", default=1e-6),
        rope=_rope(config),
        tied=config.get("tie_word_embeddings") or False,
        bos_token_id=config.get("bos_token_id"),
        eos_token_ids=tuple(sorted(set(eos))),
    )


def _rope(config: Mapping[str, Any]) -> RopeConfig:
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
    return RopeConfig(theta=theta, kind=str(kind)[:40])  # refuses what is not "default" by name


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
