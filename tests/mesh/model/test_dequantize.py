"""Every stored type becomes the numbers its reference decoder gives, whatever the slices and the strides."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from mesh.model.dequantize import dequantize
from mesh.weights.shards.tensor_file import TensorInfo
from mesh.weights.shards.tensor_types import BLOCK_TYPES, WEIGHT_TYPES, num_bytes

SHAPE = (2100, 512)  # more than the 2^20 weights that are decoded at a time, and no multiple of them


def stored(kind: str, shape: tuple[int, ...] = SHAPE) -> tuple[TensorInfo, memoryview]:
    """Random bytes of the type, every block scale a sound half float."""
    size = num_bytes(kind, shape)
    data = np.random.default_rng(5).integers(0, 60, size, dtype=np.uint8)  # exponents below infinity and NaN
    return TensorInfo("w", kind, shape, 0, size), memoryview(data).cast("B")


def expected(info: TensorInfo, data: memoryview) -> torch.Tensor:
    if info.type == "BF16":
        wide = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
        return torch.from_numpy(wide.view(np.float32).reshape(info.shape))
    if info.type in BLOCK_TYPES:
        rows = np.frombuffer(data, np.uint8).reshape(info.shape[0], -1)
        return torch.from_numpy(gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[info.type]))
    kind = {"F32": np.float32, "F16": np.float16}[info.type]
    return torch.from_numpy(np.frombuffer(data, kind).astype(np.float32).reshape(info.shape))


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_type_decodes_as_its_reference_does(kind: str, transposed: bool) -> None:
    info, data = stored(kind)
    out = torch.full(SHAPE[::-1], -7.0).t() if transposed else torch.full(SHAPE, -7.0)
    dequantize(info, data, out)
    assert expected(info, data).isfinite().all()
    assert torch.equal(out, expected(info, data))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_vector_decodes_too(kind: str) -> None:
    info, data = stored(kind, (512,))
    out = torch.empty(512)
    dequantize(info, data, out)
    assert torch.equal(out, expected(info, data).view(512))


def test_half_precision_gets_the_nearest_numbers() -> None:
    info, data = stored("Q8_0")
    out = torch.empty(SHAPE, dtype=torch.bfloat16)
    dequantize(info, data, out)
    assert torch.equal(out, expected(info, data).to(torch.bfloat16))
