"""Tiny random LLaMA checkpoints, made on the spot: every shape the family comes in, a few hundred kilobytes each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_tiny_checkpoint(
    directory: Path,
    *,
    num_layers: int = 4,
    hidden_size: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    intermediate_size: int = 96,
    vocab_size: int = 300,
    context_length: int = 512,
    tied: bool = False,
    rope: dict[str, Any] | None = None,
    dtype: str = "F32",
    seed: int = 0,
    architecture: str = "LlamaForCausalLM",
    **fields: Any,
) -> Path:
    """Write a Hugging Face directory: config.json, model.safetensors, tokenizer.json, tokenizer_config.json.

    ``rope`` is a transformers-4 style ``rope_scaling`` value. ``dtype`` is "F32" or "F16". ``fields`` are further ones of
    config.json, as ``attention_bias=True`` or ``sliding_window=9``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": architecture.removesuffix("ForCausalLM").lower(),
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab_size,
        "max_position_embeddings": context_length,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": rope,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 256,
        "eos_token_id": [256, 258],
        "torch_dtype": {"F32": "float32", "F16": "float16"}[dtype],
        **fields,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    save_file(
        _random_tensors(config, np.random.default_rng(seed), np.dtype({"F32": "f4", "F16": "f2"}[dtype])),
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    (directory / "tokenizer.json").write_text(json.dumps(byte_level_tokenizer(), ensure_ascii=False))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": CHATML, "bos_token": SPECIALS[0], "eos_token": SPECIALS[2]})
    )
    return directory


def _random_tensors(
    config: dict[str, Any], rng: np.random.Generator, dtype: np.dtype[Any]
) -> dict[str, np.ndarray[Any, Any]]:
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]

    def matrix(rows: int, columns: int) -> np.ndarray[Any, Any]:
        return (rng.standard_normal((rows, columns)) * columns**-0.5).astype(dtype)

    def norm() -> np.ndarray[Any, Any]:
        return (1 + 0.1 * rng.standard_normal(d)).astype(dtype)

    tensors = {
        "model.embed_tokens.weight": (rng.standard_normal((v, d)) * 0.5).astype(dtype),
        "model.norm.weight": norm(),
    }
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(v, d) * dtype.type(4)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": norm(),
            prefix + "self_attn.q_proj.weight": matrix(q, d),
            prefix + "self_attn.k_proj.weight": matrix(kv, d),
            prefix + "self_attn.v_proj.weight": matrix(kv, d),
            prefix + "self_attn.o_proj.weight": matrix(d, q),
            prefix + "post_attention_layernorm.weight": norm(),
            prefix + "mlp.gate_proj.weight": matrix(f, d),
            prefix + "mlp.up_proj.weight": matrix(f, d),
            prefix + "mlp.down_proj.weight": matrix(d, f),
        }
        for name in _biased(config):
            rows = len(tensors[f"{prefix}{name}.weight"])
            tensors[f"{prefix}{name}.bias"] = (0.3 * rng.standard_normal(rows)).astype(dtype)
        if config["model_type"] == "qwen3":
            for side in ("q", "k"):
                tensors[f"{prefix}self_attn.{side}_norm.weight"] = norm()[: config["head_dim"]]
    return tensors


def _biased(config: dict[str, Any]) -> list[str]:
    """The projections of a layer that have a bias."""
    names = [f"self_attn.{side}_proj" for side in "qkv"] if config["model_type"] == "qwen2" else []
    if config["attention_bias"]:
        names += [f"self_attn.{side}_proj" for side in "qkvo"]
    if config["mlp_bias"]:
        names += [f"mlp.{side}_proj" for side in ("gate", "up", "down")]
    return names


def byte_level_tokenizer() -> dict[str, Any]:
    """A tokenizer.json whose ids 0–255 are the bytes themselves and 256–258 the ChatML specials."""
    vocab = {_byte_char(byte): byte for byte in range(256)}
    added = [
        {
            "id": 256 + index,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, text in enumerate(SPECIALS)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [],
        },
    }


def _byte_char(byte: int) -> str:
    """GPT-2's visible stand-in for a byte: itself where printable, else a character from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    others = [b for b in range(256) if b not in printable]
    return chr(256 + others.index(byte))
