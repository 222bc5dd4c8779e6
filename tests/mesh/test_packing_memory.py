"""Packing holds a few chunks of tensors, whatever the model weighs and however it comes in.

The same bound that a checkpoint of 70B is held to (``python -m benchmarks.pack --memory``), with smaller tensors.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.big_checkpoints import BigShape, write_big_hf, write_big_meta

SHAPE = BigShape(hidden_size=1024, intermediate_size=4096, num_layers=13, vocab_size=512)
BOUND = 3 * SHAPE.largest_tensor_bytes + 300 * 10**6

MEASURE = """
    import sys
    from pathlib import Path
    from mesh.publishing import pack_release
    from mesh.weights.trust.signing import PrivateKey
    from tests.support.peak_memory import peak_rss_bytes
    source, out, kind = sys.argv[1:]
    pack_release(Path(source), Path(out), "Apache-2.0", None, PrivateKey.generate(), quantize=kind or None)
    print(peak_rss_bytes())
"""


@pytest.mark.parametrize(
    ("write", "quantize"),
    [(write_big_hf, ""), (write_big_hf, "q4_1"), (write_big_meta, "")],
    ids=["safetensors", "safetensors to q4_1", "Meta, 8 ranks"],
)
def test_memory_is_bounded_by_the_largest_tensor(
    tmp_path: Path, write: Callable[[Path, BigShape], Path], quantize: str
) -> None:
    source = write(tmp_path / "source", SHAPE)
    # Else the bound would say nothing, not even of who reads all of the source and writes all of the release at once.
    assert sum(path.stat().st_size for path in source.iterdir()) > BOUND
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(source), str(tmp_path / "out"), quantize],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parents[2],
    )
    assert json.loads(ran.stdout) < BOUND
