"""Tiny GGUF files, written with the reference writer from a tiny Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize
from safetensors.numpy import load_file

from mesh.weights.checkpoints.gguf_checkpoint import _NAMES
from tests.support.tiny_models import SPECIALS, _byte_char, write_tiny_checkpoint

Array = np.ndarray[Any, Any]

MERGES = ("t h", "th e", "i n", "Ġ the")


def interleave_rows(rows: Array, num_heads: int) -> Array:
    """llama.cpp's ``permute`` (convert_hf_to_gguf.py): Hugging Face's row order to GGUF's, which is Meta's. Of a tensor too."""
    return (
        rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
        .swapaxes(1, 2)
        .reshape(rows.shape)
    )


def write_tiny_gguf(
    directory: Path,
    *,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    metadata: dict[str, Any] | None = None,
    drop: frozenset[str] = frozenset(),
    extra_tensors: dict[str, Array] | None = None,
    architecture: str = "llama",
    num_parts: int = 1,
    blocks: Callable[[str, Array], Array] | None = None,
    **sizes: Any,
) -> tuple[Path, dict[str, Array]]:
    """A GGUF of a tiny model, and the tensors it was made from under Hugging Face's names.

    ``metadata`` overrides entries (None drops one); ``drop`` leaves tensors out, by GGUF name. With more than one part
    the path is that of the first. ``blocks`` makes the rows of bytes of a matrix, given its Hugging Face name and floats,
    for the types that gguf cannot quantise to.
    """
    config = {
        "num_layers": 2, "hidden_size": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16,
        "intermediate_size": 96, "vocab_size": 300, **sizes,
    }  # fmt: skip
    classes = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    hf = write_tiny_checkpoint(
        directory / "hf", architecture=classes.get(architecture, "LlamaForCausalLM"), **config
    )
    tensors = load_file(hf / "model.safetensors")
    directory.mkdir(exist_ok=True)
    path = directory / "tiny.gguf"
    per_part = -(-len(tensors) // num_parts) if num_parts > 1 else 0  # 0: one file
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=per_part)
    entries: dict[str, Any] = {
        f"{architecture}.block_count": config["num_layers"],
        f"{architecture}.context_length": 512,
        f"{architecture}.embedding_length": config["hidden_size"],
        f"{architecture}.feed_forward_length": config["intermediate_size"],
        f"{architecture}.attention.head_count": config["num_heads"],
        f"{architecture}.attention.head_count_kv": config["num_kv_heads"],
        f"{architecture}.attention.key_length": config["head_dim"],
        f"{architecture}.attention.value_length": config["head_dim"],
        f"{architecture}.rope.dimension_count": config["head_dim"],
        f"{architecture}.rope.freq_base": 10000.0,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.vocab_size": config["vocab_size"],
        **vocabulary(config["vocab_size"]),
        **(metadata or {}),
    }
    for key, value in entries.items():
        if value is not None:
            _add(writer, key, value)
    for name, array in (tensors | (extra_tensors or {})).items():
        gguf_name = gguf_name_of(name)
        if gguf_name in drop:
            continue
        is_quantised = array.ndim == 2 and quantization != gguf.GGMLQuantizationType.F32
        if is_quantised:  # row by row, so moving the rows afterwards is the same
            array = quantize(array, quantization) if blocks is None else blocks(name, array)
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            array = interleave_rows(array, config["num_heads" if "q_proj" in name else "num_kv_heads"])
        writer.add_tensor(gguf_name, array, raw_dtype=quantization if is_quantised else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (path if num_parts == 1 else path.with_name(f"tiny-00001-of-{num_parts:05d}.gguf")), tensors


def gguf_name_of(name: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` -> ``blk.3.ffn_up.weight``; what is unknown stays."""
    parts = name.removeprefix("model.").split(".")
    if parts[0] == "layers":
        return f"blk.{parts[1]}." + _NAMES.get(".".join(parts[2:]), ".".join(parts[2:]))
    return _NAMES.get(".".join(parts), ".".join(parts))


def vocabulary(vocab_size: int) -> dict[str, Any]:
    """A byte-level vocabulary of the tiny models' ids, with a few merges behind the specials."""
    tokens = [_byte_char(byte) for byte in range(256)] + list(SPECIALS) + ["".join(m.split()) for m in MERGES]
    types = [1] * 256 + [3] * len(SPECIALS) + [1] * len(MERGES)
    tokens += [f"[PAD{index}]" for index in range(vocab_size - len(tokens))]
    types += [5] * (vocab_size - len(types))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.chat_template": "{{ messages }}",
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)
        case _:
            raise TypeError(key)
