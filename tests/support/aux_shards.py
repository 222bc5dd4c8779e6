"""An aux shard in memory, of whatever small files a test wants in it."""

from __future__ import annotations

from collections.abc import Mapping

from mesh.weights.shards.shard import Shard
from mesh.weights.shards.tensor_file import TensorInfo


def aux_shard(files: Mapping[str, bytes]) -> Shard:
    tensors, data = {}, b""
    for name, content in files.items():
        tensors[name] = TensorInfo(name, "U8", (len(content),), len(data), len(content))
        data += content
    return Shard("aux", None, "0" * 64, tensors, memoryview(data))
