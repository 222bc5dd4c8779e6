"""The tensors of one stage, allocated once and filled in place.

A stage's memory is taken as a whole, then each canonical tensor is written into its place: projections that read the
same input lie side by side in one matrix, and no second copy of anything exists. The places are views in the
checkpoint's shapes, so what fills them (``loader.py``, a test's state dict) knows nothing of the arrangement.

    weights = StageWeights(config, LayerRange(0, 4), "cpu", torch.float32)
    for name, place in weights.places("layer", 0).items():
        place.copy_(tensors[name])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mesh.architecture import LlamaConfig
from mesh.layers import LayerRange

ShardKey = tuple[str, int | None]  # role, layer


class LayerWeights:
    """One decoder layer.

    Matrices that widen are stored ``[in, out]``, the transpose of a checkpoint's: one row times such a matrix runs in
    long strides along memory, up to twice as fast as many short dot products; products of many rows take the same time
    (MKL, AVX2; ``benchmarks/matrix_order.py``). Those that narrow have long rows as they are.
    """

    def __init__(self, config: LlamaConfig, device: str, dtype: torch.dtype) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, device=device, dtype=dtype)

        d, f, q, kv = config.hidden_size, config.intermediate_size, config.q_size, config.kv_size
        self.input_norm = empty(d)
        self.qkv = empty(d, q + 2 * kv)  # queries, keys, values side by side: one product instead of three
        self.output = empty(d, q)
        self.mlp_norm = empty(d)
        self.gate_up = empty(d, 2 * f)
        self.down = empty(d, f)
        self.qkv_bias = empty(q + 2 * kv) if config.qkv_bias else None
        self.output_bias = empty(d) if config.output_bias else None
        self.gate_up_bias = empty(2 * f) if config.mlp_bias else None
        self.down_bias = empty(d) if config.mlp_bias else None
        self.query_norm = empty(config.head_dim) if config.qk_norm else None
        self.key_norm = empty(config.head_dim) if config.qk_norm else None
        self._sizes = (q, kv, kv)

    def places(self) -> dict[str, Tensor]:
        query, key, value = self.qkv.t().split(self._sizes)
        gate, up = self.gate_up.t().chunk(2)
        weights = {
            "input_layernorm.weight": self.input_norm,
            "self_attn.q_proj.weight": query,
            "self_attn.k_proj.weight": key,
            "self_attn.v_proj.weight": value,
            "self_attn.o_proj.weight": self.output,
            "post_attention_layernorm.weight": self.mlp_norm,
            "mlp.gate_proj.weight": gate,
            "mlp.up_proj.weight": up,
            "mlp.down_proj.weight": self.down,
        }
        biases = (None,) * 3 if self.qkv_bias is None else self.qkv_bias.split(self._sizes)
        gate_up = (None,) * 2 if self.gate_up_bias is None else self.gate_up_bias.chunk(2)
        optional = {
            **dict(zip((f"self_attn.{side}_proj.bias" for side in "qkv"), biases, strict=True)),
            "self_attn.o_proj.bias": self.output_bias,
            **dict(zip(("mlp.gate_proj.bias", "mlp.up_proj.bias"), gate_up, strict=True)),
            "mlp.down_proj.bias": self.down_bias,
            "self_attn.q_norm.weight": self.query_norm,
            "self_attn.k_norm.weight": self.key_norm,
        }
        return weights | {name: place for name, place in optional.items() if place is not None}


class StageWeights:
    """What the stage of a layer range holds: the embedding only if it is first, norm and head only if it is last."""

    def __init__(self, config: LlamaConfig, layers: LayerRange, device: str, dtype: torch.dtype) -> None:
        self._range, self._tied = layers, config.tied
        self.layers = [LayerWeights(config, device, dtype) for _ in layers]
        self.embedding: Tensor | None = None  # [V, D]
        self.final_norm: Tensor | None = None  # [D]
        self.head: Tensor | None = None  # [D, V], widening too
        if layers.is_last(config.num_layers):
            self.final_norm = torch.empty(config.hidden_size, device=device, dtype=dtype)
            self.head = torch.empty((config.hidden_size, config.vocab_size), device=device, dtype=dtype)
        if layers.is_first():
            if config.tied and self.head is not None:
                self.embedding = self.head.t()  # one matrix for both: rows are gathered from its columns
            else:
                self.embedding = torch.empty(
                    (config.vocab_size, config.hidden_size), device=device, dtype=dtype
                )

    def shards(self) -> Iterator[ShardKey]:
        """The shards that fill these weights; the same as ``Manifest.shards_for`` names."""
        if self.embedding is not None or (self.head is not None and self._tied):
            yield "embed", None
        for layer in self._range:
            yield "layer", layer
        if self.head is not None:
            yield "head", None

    def places(self, role: str, layer: int | None) -> Mapping[str, Tensor]:
        """Where the tensors of one shard go: canonical name to a view of the checkpoint's shape."""
        if layer is not None:
            return self.layers[layer - self._range.start].places()
        if role == "embed":
            matrix = self.embedding if self.embedding is not None else self.head.t()  # type: ignore[union-attr]
            return {"embed_tokens.weight": matrix}
        assert self.final_norm is not None
        assert self.head is not None
        places = {"norm.weight": self.final_norm}
        if not self._tied:
            places["lm_head.weight"] = self.head.t()
        return places
