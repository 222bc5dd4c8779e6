"""What the model's tests share: one thread, and the real model once it is packed and loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mesh.layers import LayerRange
from mesh.model.llama import Stage
from mesh.model.loader import load_stage
from tests.support.releases import PackedRelease, pack


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Another number of threads may round differently, and the machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def real_release(real_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedRelease:
    return pack(real_gguf, tmp_path_factory.mktemp("real"), name="smollm2-135m-instruct")


@pytest.fixture(scope="module")
def real_stage(real_release: PackedRelease) -> Stage:
    """All layers of the real model, loaded from shards as a node does."""
    release, config = real_release.open(), real_release.manifest.config
    layers = LayerRange(0, config.num_layers)
    return load_stage(
        config, layers, {ref: release.shard_path(ref) for ref in release.manifest.shards_for(layers)}
    )
