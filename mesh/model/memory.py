"""What a stage takes in memory, before anything is loaded: pure arithmetic, no torch.

Weights are counted as they will lie in memory (dequantised to ``element_size`` bytes each), not as the file has them.
The coordinator proposes layers with it, the node checks the proposal with it; both must agree.

    plan_stage(config, LayerRange(0, 10), kv_tokens=4096).total_bytes
    largest_range(config, 0, config.num_layers, memory_bytes=2 << 30, kv_tokens=4096)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mesh.architecture import LlamaConfig
from mesh.layers import LayerRange
from mesh.weights.checkpoints.layout import tensor_shapes

# Resident size of a node process before any weights: 265 MiB with torch 2.13 (CPU), grpc, libtorrent and a session
# imported and one product and one attention computed (Linux x86-64); the rest is for allocator slack, BitTorrent's
# buffers and the frames of open links.
RUNTIME_BYTES = 400 * 1024 * 1024
MAX_BATCH_ROWS = 512  # of one engine step; node/scheduling.py holds to what is planned for here
_LOGIT_ROWS = 64  # sessions that may sample in one engine step
_DECODE_BYTES = 32 * 1024 * 1024  # a slice being dequantised and the decoder's temporaries; see dequantize.py


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Bytes that one stage takes at its peak, by cause."""

    layers: LayerRange
    weight_bytes: int
    kv_bytes: int
    # activations of the largest step; or loading, as far as it does not fit where KV will be
    workspace_bytes: int
    runtime_bytes: int  # the process itself

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.workspace_bytes + self.runtime_bytes


def layer_parameters(config: LlamaConfig) -> int:
    """Weights of one decoder layer."""
    return sum(map(math.prod, tensor_shapes(config, "layer").values()))


def embedding_parameters(config: LlamaConfig) -> int:
    return config.vocab_size * config.hidden_size


def plan_stage(config: LlamaConfig, layers: LayerRange, kv_tokens: int, element_size: int = 4) -> StagePlan:
    """The plan for ``layers`` with KV cache for ``kv_tokens`` tokens over all sessions."""
    is_first, is_last = layers.is_first(), layers.is_last(config.num_layers)
    parameters = len(layers) * layer_parameters(config)
    if is_last:
        parameters += embedding_parameters(config) + config.hidden_size  # lm_head and final norm
    if is_first and not (is_last and config.tied):  # a one-stage tied model holds the matrix once
        parameters += embedding_parameters(config)
    kv_bytes = len(layers) * 2 * config.kv_size * kv_tokens * element_size
    computing = _computing_bytes(config, is_last, kv_tokens, element_size)
    # Shards are loaded before the first session exists, so loading may use the memory that the KV cache will take.
    loading = _loading_bytes(config, is_first or is_last) - kv_bytes
    return StagePlan(layers, parameters * element_size, kv_bytes, max(computing, loading), RUNTIME_BYTES)


def largest_range(
    config: LlamaConfig, start: int, stop: int, memory_bytes: int, kv_tokens: int, element_size: int = 4
) -> LayerRange | None:
    """The longest range from ``start``, not past ``stop``, that fits; None if not even one layer does."""
    fitting = (
        LayerRange(start, end)
        for end in range(stop, start, -1)
        if plan_stage(config, LayerRange(start, end), kv_tokens, element_size).total_bytes <= memory_bytes
    )
    return next(fitting, None)


def _computing_bytes(config: LlamaConfig, is_last: bool, kv_tokens: int, element_size: int) -> int:
    """What ``Stage.run`` allocates at most for a batch of ``MAX_BATCH_ROWS`` rows, besides KV cache."""
    # The residual, its norm and a sublayer's result live through both sublayers, which never live at the same time.
    attention = 2 * config.q_size + 5 * (
        config.q_size + 2 * config.kv_size
    )  # q, k, v and their rotation's temporaries
    mlp = 4 * config.intermediate_size  # gate and up, the gate activated, the product
    row = (4 * config.hidden_size + max(attention, mlp)) * element_size
    mask = kv_tokens * (1 + element_size)  # a row of a mask: as booleans, and as torch adds it to the scores
    logits = _LOGIT_ROWS * config.vocab_size * 4 if is_last else 0
    return MAX_BATCH_ROWS * (row + mask) + logits


def _loading_bytes(config: LlamaConfig, has_embedding: bool) -> int:
    """The largest shard's file beside what it becomes. No file has more than float32 for each weight."""
    largest = max(layer_parameters(config), embedding_parameters(config) if has_embedding else 0)
    return largest * 4 + _DECODE_BYTES
