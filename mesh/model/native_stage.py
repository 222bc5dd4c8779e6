"""A stage that computes on the blocks as they lie in the shards: the fast path on CPUs.

The same interface as ``llama.Stage``. Quantised weights meet activations that are rounded to 8 bits in blocks of 32, as
in llama.cpp; plain weights meet them in float32. No weight is copied or dequantised: memory is the shards and the cache.

Exactness: a session's results are the same bits whatever shares its batch, however its prompt was cut into steps,
wherever the layers are cut, however many threads compute and whichever instruction set they use. What it does not
promise is equality with the float32 of ``llama.Stage``: rounding activations moves logits a little.

    stage = NativeStage(config, LayerRange(0, 10), shards, threads=2)
    [hidden] = stage.run([StageStep(cache, 0, token_ids, None, sample=False)])

Knows tensors by name. The arithmetic is C, in ``native/``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mesh.architecture import LlamaConfig
from mesh.layers import LayerRange
from mesh.model.kv_cache import KvCache, StepRefused
from mesh.model.llama import StageStep, check_steps
from mesh.model.native import library
from mesh.model.native.library import Layer, Matrix, NativeEngine, StageLayout, Step, address
from mesh.model.rope import inverse_frequencies
from mesh.model.stage_weights import ShardKey
from mesh.weights.shards.shard import Shard
from mesh.weights.shards.tensor_types import row_bytes

_PROJECTIONS = {
    "query": "self_attn.q_proj.weight",
    "key": "self_attn.k_proj.weight",
    "value": "self_attn.v_proj.weight",
    "output": "self_attn.o_proj.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}


def unsupported_features(config: LlamaConfig) -> list[str]:
    """What of a config the library does not compute; empty if it takes it."""
    present = {
        "biases": config.qkv_bias or config.output_bias or config.mlp_bias,
        "norms of queries and keys": config.qk_norm,
        "a sliding window": config.sliding_window is not None,
        f"{config.rope.kind} RoPE scaling": config.rope.kind not in ("default", "linear", "llama3"),
    }
    return [name for name, is_there in present.items() if is_there]


def unsupported_types(shards: Mapping[ShardKey, Shard]) -> set[str]:
    """Types among the shards' tensors that the library does not compute with; empty if it takes them all."""
    return {info.type for shard in shards.values() for info in shard.tensors.values()} - set(library.TYPES)


class NativeStage:
    """A contiguous range of layers, ready to compute. One caller at a time."""

    device = "cpu"

    def __init__(
        self,
        config: LlamaConfig,
        layers: LayerRange,
        shards: Mapping[ShardKey, Shard],
        *,
        threads: int,
        isa: str | None = None,
    ) -> None:
        """``shards`` are those of the range, their tensors of the config's shapes and of ``library.TYPES``."""
        self.config, self.layers = config, layers
        self.is_first, self.is_last = layers.is_first(), layers.is_last(config.num_layers)
        self._engine = NativeEngine(threads, isa)
        self.kernel_id = library.kernel_id(self._engine.isa)
        self._kept: list[Any] = []  # what the layout points to
        self._layout = self._lay_out(shards)

    def new_cache(self, max_tokens: int) -> KvCache:
        return KvCache(self.config, len(self.layers), max_tokens)

    def run(self, steps: Sequence[StageStep]) -> list[Tensor]:
        """As ``llama.Stage.run``: the same checks, the same results by shape."""
        check_steps(steps, self.config, self.layers)
        self._check_ids(steps)
        width, vocab = self.config.hidden_size, self.config.vocab_size
        given = [self._input(step) for step in steps]
        leaving = [not self.is_last or step.all_rows for step in steps]  # with their hidden states
        sampling = [self.is_last and step.sample and not step.all_rows for step in steps]
        outputs = [
            np.empty((step.num_tokens if leaves else 0, width), np.float32)
            for step, leaves in zip(steps, leaving, strict=True)
        ]
        logits = np.empty((sum(sampling), vocab), np.float32)
        native = (Step * len(steps))()
        for i, step in enumerate(steps):
            where = native[i]
            where.cache, where.max_tokens = step.cache.address, step.cache.max_tokens
            where.position, where.num_tokens = step.position, step.num_tokens
            if self.is_first:
                where.ids = address(given[i])
            else:
                where.input = address(given[i])
            if leaving[i]:
                where.output = address(outputs[i])
            where.sample = sampling[i]
        self._engine.run(self._layout, native, address(logits))
        for step in steps:
            step.cache.advance(step.num_tokens)
        drawn = iter(torch.from_numpy(logits))
        return [
            torch.from_numpy(outputs[i]) if leaving[i] else next(drawn) if sampling[i] else torch.empty(0)
            for i in range(len(steps))
        ]

    def logits(self, rows: Tensor) -> Tensor:
        """As ``llama.Stage.logits``: a run of no layers, each row a step that samples."""
        given = np.ascontiguousarray(rows.numpy(), np.float32)
        out = np.empty((given.shape[0], self.config.vocab_size), np.float32)
        native = (Step * given.shape[0])()
        for i in range(given.shape[0]):
            native[i].input, native[i].num_tokens, native[i].sample = address(given[i]), 1, True
        self._engine.run(self._head_layout, native, address(out))
        return torch.from_numpy(out)

    def _check_ids(self, steps: Sequence[StageStep]) -> None:
        """An id past the vocabulary would be read past the end of a matrix."""
        for step in steps:
            if step.token_ids is None:
                continue
            low, high = int(step.token_ids.min()), int(step.token_ids.max())
            if low < 0 or high >= self.config.vocab_size:
                raise StepRefused(
                    f"token ids from {low} to {high}: expected 0 to {self.config.vocab_size - 1}"
                )

    def _input(self, step: StageStep) -> np.ndarray[Any, Any]:
        given = step.token_ids if self.is_first else step.hidden
        assert given is not None
        array: np.ndarray[Any, Any] = given.numpy()
        return np.ascontiguousarray(array, np.int64 if self.is_first else np.float32)

    def _lay_out(self, shards: Mapping[ShardKey, Shard]) -> StageLayout:
        config = self.config
        frequencies = inverse_frequencies(config.rope, config.head_dim).numpy()
        layers = (Layer * len(self.layers))()
        for index, number in enumerate(self.layers):
            shard = shards["layer", number]
            layers[index].attention_norm = self._vector(shard, "input_layernorm.weight")
            layers[index].mlp_norm = self._vector(shard, "post_attention_layernorm.weight")
            for field, name in _PROJECTIONS.items():
                setattr(layers[index], field, self._matrix(shard, name))
        self._kept += [frequencies, layers]
        layout = StageLayout(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            num_layers=len(self.layers),
            norm_eps=config.rms_norm_eps,
            frequencies=address(frequencies),
            layers=layers,
        )
        if self.is_first:
            layout.embedding = self._matrix(shards["embed", None], "embed_tokens.weight")
        if self.is_last:
            layout.final_norm = self._vector(shards["head", None], "norm.weight")
            if config.tied:
                layout.head = self._matrix(shards["embed", None], "embed_tokens.weight")
            else:
                layout.head = self._matrix(shards["head", None], "lm_head.weight")
        self._head_layout = StageLayout(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            num_layers=0,
            norm_eps=config.rms_norm_eps,
            frequencies=address(frequencies),
            layers=layers,
            final_norm=layout.final_norm,
            head=layout.head,
        )
        return layout

    def _vector(self, shard: Shard, name: str) -> int:
        """A norm's weight as float32, aligned: the one thing that is copied, a few kilobytes a layer."""
        info = shard.tensors[name]
        vector = np.empty(info.shape, np.float32)
        self._engine.dequantise(self._matrix(shard, name), 0, address(vector))
        self._kept.append(vector)
        return address(vector)

    def _matrix(self, shard: Shard, name: str) -> Matrix:
        info = shard.tensors[name]
        stored = np.frombuffer(shard.bytes_of(name), np.uint8)
        self._kept.append(stored)
        columns = info.shape[-1]
        return Matrix(
            data=address(stored),
            row_bytes=row_bytes(info.type, columns),
            type=library.TYPES.index(info.type),
            rows=info.shape[0] if len(info.shape) == 2 else 1,
            columns=columns,
        )
