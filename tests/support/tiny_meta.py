"""Tiny models as Meta hands them out: one pickle per model-parallel rank, cut as the reference's layers cut them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.mesh.weights.tiny_gguf import interleave_rows
from tests.support.tiny_models import write_tiny_checkpoint

META_NAMES = {
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
    "norm": ("norm", None),
    "lm_head": ("output", 0),
}
# 64 wide: two thirds of 256 are 170, up to a multiple of 32: 192
SIZES: dict[str, Any] = {
    "num_layers": 2, "hidden_size": 64, "num_heads": 8, "num_kv_heads": 8, "head_dim": 8,
    "intermediate_size": 192, "vocab_size": 512,
}  # fmt: skip
PARAMS: dict[str, Any] = {
    "dim": 64, "n_layers": 2, "n_heads": 8, "multiple_of": 32, "norm_eps": 1e-5, "vocab_size": -1,
}  # fmt: skip


def write_tiny_meta(
    directory: Path,
    *,
    num_ranks: int,
    embedding_dim: int = 1,
    dtype: torch.dtype = torch.float32,
    params: dict[str, Any] | None = None,
    **sizes: Any,
) -> dict[str, torch.Tensor]:
    """Write ``consolidated.NN.pth``, ``params.json`` and a ``tokenizer.model`` of bytes, and return the tensors by Hugging
    Face's names. ``embedding_dim`` is the dimension along which the embedding is cut: 1 until Llama 2, 0 from Llama 3."""
    sizes = SIZES | sizes
    hf = write_tiny_checkpoint(directory.parent / f"{directory.name}-hf", **sizes)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(hf / "model.safetensors").items()}
    directory.mkdir()
    ranks: list[dict[str, torch.Tensor]] = [{} for _ in range(num_ranks)]
    for name, tensor in tensors.items():
        meta_name, dim = _meta_name(name, embedding_dim)
        if "q_proj" in name or "k_proj" in name:
            heads = sizes["num_heads" if "q_proj" in name else "num_kv_heads"]
            tensor = interleave_rows(tensor, heads)  # type: ignore[arg-type]
        slices = [tensor] * num_ranks if dim is None else tensor.chunk(num_ranks, dim=dim)
        for rank, piece in zip(ranks, slices, strict=True):
            rank[meta_name] = piece.clone()
    for number, rank in enumerate(ranks):
        rank["rope.freqs"] = torch.ones(4)
        torch.save(rank, directory / f"consolidated.{number:02d}.pth")
    values = PARAMS | {"n_layers": sizes["num_layers"]} | (params or {})
    (directory / "params.json").write_text(json.dumps(values))
    lines = (base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
    (directory / "tokenizer.model").write_bytes(b"".join(lines))
    return tensors


def _meta_name(name: str, embedding_dim: int) -> tuple[str, int | None]:
    stem = name.removeprefix("model.").removesuffix(".weight")
    if stem == "embed_tokens":
        return "tok_embeddings.weight", embedding_dim
    if not stem.startswith("layers."):
        meta, dim = META_NAMES[stem]
        return f"{meta}.weight", dim
    _, layer, inner = stem.split(".", 2)
    meta, dim = META_NAMES[inner]
    return f"layers.{layer}.{meta}.weight", dim
