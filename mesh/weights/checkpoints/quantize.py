"""Quantise a checkpoint while it is packed: float matrices become GGML blocks, a slice of rows at a time.

    smaller = quantized(checkpoint, "q4_0")

Matrices of the layers get the type asked for. The embedding and lm_head, which every token goes through, get no less than
Q8_0, as in llama.cpp's own files; norms and biases stay as they are. The blocks are those of ``gguf.quants.quantize``, numpy
in float32 without a sum anywhere, so the same input gives the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mesh.errors import CheckpointUnsupported, UsageError
from mesh.weights.checkpoints.checkpoint import Checkpoint
from mesh.weights.checkpoints.tensor_streams import equal_blocks
from mesh.weights.shards.shard import TensorSource
from mesh.weights.shards.tensor_types import BLOCK_TYPES, PLAIN_TYPES

KINDS = ("q8_0", "q4_0", "q4_1")
_SLICE_WEIGHTS = 1 << 20  # 4 MiB of float32, and a few times that in the encoder's temporaries
_MAX_WEIGHT = 65504.0  # float16's largest, and far beyond any weight
# A block of such weights has the scale zero in float16; but 1 / scale may leave float32 on the way there.
_TINY = np.float32(2.0**-100)


def quantized(checkpoint: Checkpoint, kind: str) -> Checkpoint:
    """Raises UsageError for an unknown kind, CheckpointUnsupported for weights that cannot become it."""
    if kind not in KINDS:
        raise UsageError(f"--quantize {kind[:40]!r}: expected {', '.join(KINDS)}")
    shards = {
        (role, layer): tuple(
            _quantized(source, kind.upper() if role == "layer" else "Q8_0")
            if len(source.shape) == 2
            else source
            for source in sources
        )
        for (role, layer), sources in checkpoint.shards.items()
    }
    return replace(checkpoint, shards=shards)


def _quantized(source: TensorSource, type_: str) -> TensorSource:
    if source.type not in PLAIN_TYPES:
        raise CheckpointUnsupported(
            f"tensor {source.name} is {source.type} already; quantise from the original floats, or pack it as it is"
        )
    if (columns := source.shape[1]) % BLOCK_TYPES[type_][0]:
        raise CheckpointUnsupported(
            f"tensor {source.name} has rows of {columns} weights, not whole {type_} blocks of {BLOCK_TYPES[type_][0]}"
        )
    return replace(source, type=type_, chunks=lambda: _blocks(source, type_))


def _blocks(source: TensorSource, type_: str) -> Iterator[bytes]:
    from gguf import GGMLQuantizationType  # a third of a second, for those who quantise
    from gguf.quants import quantize

    rows, columns = source.shape
    step = max(1, _SLICE_WEIGHTS // columns)
    for data in equal_blocks(source.chunks(), step * (source.nbytes // rows)):
        weights = _floats(data, source.type).reshape(-1, columns)
        if not (np.abs(weights) <= _MAX_WEIGHT).all():  # not a number is not less either
            raise CheckpointUnsupported(
                f"tensor {source.name} has a weight that is no number, or beyond {_MAX_WEIGHT:g}"
            )
        weights = np.where(np.abs(weights) < _TINY, np.float32(0), weights)
        yield quantize(weights, GGMLQuantizationType[type_]).tobytes()


def _floats(data: bytes, type_: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Exact in float32 for every plain type; a shard's bytes are little-endian."""
    if type_ == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[type_]).astype(np.float32)
