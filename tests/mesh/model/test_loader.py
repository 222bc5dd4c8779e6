"""What is loaded is what the manifest names; a shard that fits no LLaMA of this config is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from mesh.errors import NotFound, ShardCorrupt
from mesh.layers import LayerRange
from mesh.model.loader import load_stage
from mesh.model.local import prefill
from mesh.weights.checkpoints.layout import tensor_shapes
from mesh.weights.shards.shard import TensorSource, write_shard
from mesh.weights.trust.manifest import ShardRef
from tests.support.releases import PackedRelease, pack_tiny
from tests.support.tiny_stages import tiny_stage

SHAPES = {"tied": True, "untied": False}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES.keys())
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PackedRelease:
    return pack_tiny(tmp_path_factory.mktemp("packed"), num_layers=3, tied=request.param)


def paths_of(packed: PackedRelease, layers: LayerRange) -> dict[ShardRef, Path]:
    release = packed.open()
    return {ref: release.shard_path(ref) for ref in packed.manifest.shards_for(layers)}


def test_loaded_stage_computes_what_the_checkpoint_computes(packed: PackedRelease) -> None:
    layers = LayerRange(0, 3)
    progress: list[tuple[int, int]] = []
    stage = load_stage(
        packed.manifest.config,
        layers,
        paths_of(packed, layers),
        on_progress=lambda done, total: progress.append((done, total)),
    )
    source = tiny_stage(packed.directory.parent / "checkpoint")
    logits = [prefill(each, each.new_cache(9), list(range(9))) for each in (stage, source)]
    np.testing.assert_array_equal(*logits)
    assert progress == [(number, 5) for number in range(1, 6)]  # embed, three layers, head


@pytest.mark.parametrize("layers", [LayerRange(0, 1), LayerRange(1, 2), LayerRange(1, 3), LayerRange(2, 3)])
def test_a_stage_needs_exactly_the_shards_the_manifest_gives_it(
    packed: PackedRelease, layers: LayerRange
) -> None:
    paths = paths_of(packed, layers)
    load_stage(packed.manifest.config, layers, paths)
    for ref in paths:
        fewer = {other: path for other, path in paths.items() if other != ref}
        name = ref.role if ref.layer is None else f"layer {ref.layer}"
        with pytest.raises(NotFound, match=f"no shard for {name}"):
            load_stage(packed.manifest.config, layers, fewer)


def test_absent_file_is_refused_by_name(packed: PackedRelease, tmp_path: Path) -> None:
    layers = LayerRange(1, 2)
    [ref] = packed.manifest.shards_for(layers)
    with pytest.raises(NotFound, match=r"layer-00001\.safetensors"):
        load_stage(packed.manifest.config, layers, {ref: tmp_path / ref.file})


def test_flipped_byte_is_refused_by_name(packed: PackedRelease, tmp_path: Path) -> None:
    layers = LayerRange(1, 2)
    [(ref, path)] = paths_of(packed, layers).items()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    (tmp_path / ref.file).write_bytes(data)
    with pytest.raises(ShardCorrupt, match=r"layer-00001\.safetensors: expected root"):
        load_stage(packed.manifest.config, layers, {ref: tmp_path / ref.file})


Tensors = dict[str, tuple[str, tuple[int, ...]]]  # type and shape by name


def without(name: str) -> Mapping[str, tuple[str, tuple[int, ...]] | None]:
    return {name: None}


MISFITS: dict[str, tuple[Mapping[str, tuple[str, tuple[int, ...]] | None], str]] = {
    "wrong shape": (
        {"self_attn.k_proj.weight": ("F32", (64, 32))},
        r"self_attn.k_proj.weight \[32, 64\], found \[64, 32\]",
    ),
    "missing tensor": (without("mlp.up_proj.weight"), r"mlp.up_proj.weight \[96, 64\], found none"),
    "extra tensor": ({"q_norm.weight": ("F32", (16,))}, r"q_norm.weight no such tensor, found \[16\]"),
    "bytes for numbers": (
        {"input_layernorm.weight": ("U8", (64,))},
        r"input_layernorm.weight of type F32, .*, found U8",
    ),
}


@pytest.mark.parametrize(("change", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_shard_that_does_not_fit_the_config_is_refused_by_shard_and_tensor(
    packed: PackedRelease,
    tmp_path: Path,
    change: Mapping[str, tuple[str, tuple[int, ...]] | None],
    message: str,
) -> None:
    # Validly packed and addressed: only its publisher can have made it so.
    config = packed.manifest.config
    tensors = {name: ("F32", shape) for name, shape in tensor_shapes(config, "layer").items()} | change
    sources = [zeros(name, *given) for name, given in tensors.items() if given is not None]
    path = tmp_path / "layer-00001.safetensors"
    written = write_shard(path, "layer", 1, sources, "0" * 64)
    ref = ShardRef("layer", 1, path.name, written.size, written.root.hex())
    with pytest.raises(ShardCorrupt, match=r"shard layer-00001\.safetensors: expected " + message):
        load_stage(config, LayerRange(1, 2), {ref: path})


def zeros(name: str, type_: str, shape: tuple[int, ...]) -> TensorSource:
    data = bytes(int(np.prod(shape)) * {"F32": 4, "U8": 1}[type_])
    return TensorSource(name, type_, shape, lambda: iter((data,)))


def test_half_precision_weights_load_exactly(tmp_path: Path) -> None:
    packed = pack_tiny(tmp_path, num_layers=1, dtype="F16")
    layers = LayerRange(0, 1)
    stage = load_stage(packed.manifest.config, layers, paths_of(packed, layers), dtype=torch.float32)
    source = tiny_stage(tmp_path / "checkpoint")
    logits = [prefill(each, each.new_cache(4), [1, 2, 3, 4]) for each in (stage, source)]
    np.testing.assert_array_equal(*logits)
