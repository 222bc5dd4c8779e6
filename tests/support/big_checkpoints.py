"""Checkpoints with tensors as large as one likes, written in no time: files of holes, unless random bytes are asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from tests.support.tiny_meta import META_NAMES, write_tiny_meta
from tests.support.tiny_models import write_tiny_checkpoint

NUM_RANKS = 8
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class BigShape:
    hidden_size: int
    intermediate_size: int
    num_layers: int
    vocab_size: int

    @property
    def largest_tensor_bytes(self) -> int:
        return 2 * self.hidden_size * self.intermediate_size

    def layer(self, kv: int) -> Shapes:
        d, f = self.hidden_size, self.intermediate_size
        return {
            "input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,),
            "self_attn.q_proj.weight": (d, d), "self_attn.k_proj.weight": (kv, d),
            "self_attn.v_proj.weight": (kv, d), "self_attn.o_proj.weight": (d, d),
            "mlp.gate_proj.weight": (f, d), "mlp.up_proj.weight": (f, d), "mlp.down_proj.weight": (d, f),
        }  # fmt: skip


def write_big_hf(directory: Path, shape: BigShape, *, sparse: bool = True) -> Path:
    """bf16 in one safetensors file."""
    write_tiny_checkpoint(directory, num_layers=1)
    config = json.loads((directory / "config.json").read_text())
    heads = 64 if shape.hidden_size >= 8192 else 16
    config |= {
        "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers, "num_attention_heads": heads, "num_key_value_heads": heads // 8,
        "head_dim": shape.hidden_size // heads, "vocab_size": shape.vocab_size, "tie_word_embeddings": False,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    shapes: Shapes = {"model.embed_tokens.weight": (shape.vocab_size, shape.hidden_size)}
    for layer in range(shape.num_layers):
        shapes |= {
            f"model.layers.{layer}.{name}": size
            for name, size in shape.layer(kv=heads // 8 * shape.hidden_size // heads).items()
        }
    shapes |= {
        "model.norm.weight": (shape.hidden_size,),
        "lm_head.weight": (shape.vocab_size, shape.hidden_size),
    }
    write_safetensors(directory / "model.safetensors", shapes, sparse=sparse)
    return directory


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]], *, sparse: bool) -> None:
    header, at = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + 2 * prod(shape)]}
        at += 2 * prod(shape)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if not sparse:
            block = os.urandom(1 << 24)
            for start in range(0, at, len(block)):
                file.write(block[: at - start])
        file.truncate(8 + len(text) + at)


def write_big_meta(directory: Path, shape: BigShape) -> Path:
    """bf16 in ``NUM_RANKS`` slices, the embedding (of 512 tokens) cut along the hidden size, as Llama 2's is."""
    import torch

    write_tiny_meta(directory, num_ranks=NUM_RANKS)
    d = shape.hidden_size
    heads = 64 if d >= 8192 else 16
    params = {
        "dim": d, "n_layers": shape.num_layers, "n_heads": heads, "n_kv_heads": 8, "multiple_of": 4096,
        "ffn_dim_multiplier": 1.3, "norm_eps": 1e-5, "vocab_size": -1,
    }  # fmt: skip
    (directory / "params.json").write_text(json.dumps(params))
    for rank in range(NUM_RANKS):
        tensors = {
            "tok_embeddings.weight": (512, d // NUM_RANKS),
            "norm.weight": (d,),
            "output.weight": (64, d),
        }
        for layer in range(shape.num_layers):
            for name, size in shape.layer(kv=8 * d // heads).items():
                stem = name.removesuffix(".weight")
                meta, dim = META_NAMES[stem]
                cut = tuple(n // NUM_RANKS if axis == dim else n for axis, n in enumerate(size))
                tensors[f"layers.{layer}.{meta}.weight"] = cut
        with torch.serialization.skip_data():  # holes instead of bytes
            torch.save(
                {name: torch.empty(size, dtype=torch.bfloat16) for name, size in tensors.items()},
                directory / f"consolidated.{rank:02d}.pth",
            )
    return directory
