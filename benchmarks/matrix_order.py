"""How a weight matrix should lie in memory: ``[out, in]`` as checkpoints have it, or ``[in, out]``.

    python -m benchmarks.matrix_order

Times the products of one layer and of the head, for one row (decoding) and many (prefill), float32, one thread. Each
product runs over several copies of its matrix, more than the caches hold, as the layers of a model do. The best of
several passes counts, so that other work on the machine does not. ``mesh/model/stage_weights.py`` follows the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812  # its customary name

COLD_BYTES = 64 << 20
PASSES = 9
SHAPES = {"qkv": (576, 960), "output": (576, 576), "gate, up": (576, 3072), "down": (1536, 576), "head": (576, 49152)}  # fmt: skip
ROWS = (1, 4, 128)


def best_microseconds(
    product: Callable[[torch.Tensor], torch.Tensor], matrices: Sequence[torch.Tensor]
) -> float:
    """Per product."""
    times = []
    for _ in range(PASSES):
        began = time.perf_counter()
        for matrix in matrices:
            product(matrix)
        times.append(time.perf_counter() - began)
    return min(times) / len(matrices) * 1e6


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print(f"{'us per product':15}" + "".join(f"{f'{rows} rows':>12}{'[in, out]':>11}" for rows in ROWS))
    for name, (inputs, outputs) in SHAPES.items():
        copies = max(2, COLD_BYTES // (inputs * outputs * 4))
        stored = [torch.randn(outputs, inputs) for _ in range(copies)]
        turned = [matrix.t().contiguous() for matrix in stored]
        cells = []
        for rows in ROWS:
            x = torch.randn(rows, inputs)
            cells.append(best_microseconds(lambda matrix, x=x: F.linear(x, matrix), stored))  # type: ignore[misc]
            cells.append(best_microseconds(lambda matrix, x=x: x @ matrix, turned))  # type: ignore[misc]
        print(f"{name:15}" + "".join(f"{cell:>{12 - place % 2}.0f}" for place, cell in enumerate(cells)))


if __name__ == "__main__":
    main()
