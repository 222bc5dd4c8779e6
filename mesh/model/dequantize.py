"""Stored numbers to float tensors, a slice of rows at a time, so that no second copy of a matrix ever exists.

Block types are decoded by the ``gguf`` library's reference code, which is also what ``transformers`` uses.
"""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import torch

from mesh.weights.shards.tensor_file import TensorInfo
from mesh.weights.shards.tensor_types import PLAIN_TYPES, row_bytes

# Decoded at a time: 4 MiB of float32, and a few times that in the decoder's temporaries; memory.py counts them.
_SLICE_WEIGHTS = 1 << 20
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dequantize(info: TensorInfo, data: memoryview, out: torch.Tensor) -> None:
    """Write the tensor into ``out``, of shape ``info.shape`` and any strides. Exact in float32 for every type."""
    columns = info.shape[-1]
    rows = out.view(-1, columns) if out.dim() == 1 else out
    step = max(1, _SLICE_WEIGHTS // columns)
    stored = _rows(info, data)
    for start in range(0, rows.shape[0], step):
        piece = stored[start : start + step]
        if isinstance(piece, np.ndarray):
            piece = torch.from_numpy(gguf.quants.dequantize(piece, gguf.GGMLQuantizationType[info.type]))
        rows[start : start + step].copy_(piece)


def _rows(info: TensorInfo, data: memoryview) -> torch.Tensor | np.ndarray[Any, np.dtype[np.uint8]]:
    """Plain numbers as a tensor, blocks as bytes; both view the shard's memory, one row of the matrix per row."""
    if info.type in PLAIN_TYPES:
        return torch.frombuffer(data, dtype=_PLAIN[info.type]).view(-1, info.shape[-1])
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, row_bytes(info.type, info.shape[-1]))
