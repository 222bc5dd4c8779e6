"""Quantising while packing gives GGML's own blocks, the same on every run, and the manifest says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from typer.testing import CliRunner

from mesh.cli.main import app
from mesh.errors import CheckpointUnsupported, UsageError
from mesh.layers import LayerRange
from mesh.model.loader import load_stage
from mesh.model.local import prefill
from mesh.publishing import pack_release
from mesh.weights.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mesh.weights.checkpoints.quantize import KINDS, _blocks, quantized
from mesh.weights.releases.release import Release
from mesh.weights.shards.shard import TensorSource
from mesh.weights.trust.signing import PrivateKey, TrustRoot
from tests.mesh.weights.test_gguf_checkpoint import by_hf_name, bytes_of
from tests.mesh.weights.tiny_gguf import write_tiny_gguf
from tests.support.tiny_models import write_tiny_checkpoint


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny-llama", num_layers=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_blocks_are_those_of_the_reference(tmp_path: Path, kind: str, dtype: str) -> None:
    directory = write_tiny_checkpoint(tmp_path / "x", dtype=dtype)
    checkpoint = quantized(open_checkpoint(directory), kind)
    assert checkpoint.quantization == kind.upper()
    found = by_hf_name(checkpoint)
    for name, array in load_file(directory / "model.safetensors").items():
        if array.ndim == 1:
            assert (found[name].type, bytes_of(found[name])) == (dtype, array.tobytes())
            continue
        type_ = kind.upper() if "layers" in name else "Q8_0"
        assert found[name].type == type_
        assert bytes_of(found[name]) == quantize(array.astype(np.float32), Kind[type_]).tobytes(), name


def source_of(array: np.ndarray[Any, Any], type_: str = "F32", chunk: int = 1000) -> TensorSource:
    data = array.tobytes()
    return TensorSource(
        "w", type_, array.shape, lambda: (data[at : at + chunk] for at in range(0, len(data), chunk))
    )


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    blocks=st.integers(1, 3),
    chunk=st.integers(1, 500),
    scale=st.sampled_from([0.0, 1e-45, 1e-39, 1e-20, 1e-8, 1.0, 6e4]),
    kind=st.sampled_from(KINDS),
)
def test_neither_chunks_nor_extreme_weights_matter(
    rows: int, blocks: int, chunk: int, scale: float, kind: str
) -> None:
    weights = np.random.default_rng(rows).uniform(-1, 1, (rows, 32 * blocks)).astype(np.float32)
    with np.errstate(all="ignore"):
        weights = (weights * np.float32(scale)).astype(np.float32)
        flushed = np.where(np.abs(weights) < 2.0**-100, np.float32(0), weights)
        expected = quantize(flushed, Kind[kind.upper()]).tobytes()
    assert b"".join(_blocks(source_of(weights, chunk=chunk), kind.upper())) == expected


def test_bfloat16_is_widened_exactly() -> None:
    weights = torch.randn(5, 64).bfloat16()
    source = source_of(weights.view(torch.int16).numpy(), "BF16")
    assert b"".join(_blocks(source, "Q4_1")) == quantize(weights.float().numpy(), Kind.Q4_1).tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e5])
def test_a_weight_that_is_no_number_is_refused(bad: float) -> None:
    weights = np.zeros((2, 32), np.float32)
    weights[1, 3] = bad
    with pytest.raises(CheckpointUnsupported, match="tensor w has a weight"):
        list(_blocks(source_of(weights), "Q8_0"))


def test_rows_that_are_not_whole_blocks_are_refused_by_name(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint(tmp_path / "x", intermediate_size=100)
    with pytest.raises(CheckpointUnsupported, match=r"mlp\.down_proj\.weight has rows of 100 weights"):
        quantized(open_checkpoint(directory), "q4_0")


def test_blocks_are_not_quantised_again(tmp_path: Path) -> None:
    path, _ = write_tiny_gguf(tmp_path, quantization=Kind.Q8_0)
    with pytest.raises(CheckpointUnsupported, match="is Q8_0 already"):
        quantized(open_checkpoint(path), "q4_0")


def test_an_unknown_kind_is_refused_by_name(tiny: Path) -> None:
    with pytest.raises(UsageError, match=r"'q2_k': expected q8_0, q4_0, q4_1"):
        quantized(open_checkpoint(tiny), "q2_k")


def packed(source: Path, out: Path, key: PrivateKey, kind: str) -> bytes:
    pack_release(
        source, out, "Apache-2.0", None, key, name="t", created="2026-01-02T03:04:05Z", quantize=kind
    )
    return (out / "manifest.dsse.json").read_bytes()


def test_the_same_input_gives_the_same_release_and_its_provenance_says_how(
    tmp_path: Path, tiny: Path
) -> None:
    key = PrivateKey.generate()
    assert packed(tiny, tmp_path / "a", key, "q4_0") == packed(tiny, tmp_path / "b", key, "q4_0")
    manifest = Release.open(tmp_path / "a", TrustRoot.of(key.public)).manifest
    assert manifest.quantization == "Q4_0"
    assert manifest.provenance.arguments == ("--quantize", "q4_0")
    assert manifest.provenance.source_digest == open_checkpoint(tiny).source_digest()  # of the floats


@pytest.mark.parametrize(("kind", "closeness"), [("q8_0", 0.999), ("q4_1", 0.97)])
def test_a_quantised_model_still_says_nearly_the_same(
    tmp_path: Path, tiny: Path, kind: str, closeness: float
) -> None:
    key = PrivateKey.generate()
    rows = []
    for name, quantization in (("floats", None), ("blocks", kind)):
        manifest = pack_release(tiny, tmp_path / name, "Apache-2.0", None, key, quantize=quantization)
        release = Release.open(tmp_path / name, TrustRoot.of(key.public))
        layers = LayerRange(0, 2)
        paths = {ref: release.shard_path(ref) for ref in manifest.shards_for(layers)}
        stage = load_stage(manifest.config, layers, paths)
        rows.append(prefill(stage, stage.new_cache(20), list(range(20))))
    floats, blocks = rows
    cosine = float(floats @ blocks / np.linalg.norm(floats) / np.linalg.norm(blocks))
    assert closeness < cosine < 1


def test_the_command_offers_exactly_the_kinds(tmp_path: Path) -> None:
    answer = CliRunner().invoke(
        app, ["pack", "x", "--out", "y", "--license", "MIT", "--key", "k", "--quantize", "q2_k"]
    )
    assert answer.exit_code == 2
    for kind in KINDS:
        assert kind in answer.output


def test_sizes_are_those_of_the_blocks(tiny: Path) -> None:
    checkpoint: Checkpoint = quantized(open_checkpoint(tiny), "q4_0")
    for sources in checkpoint.shards.values():
        for source in sources:
            assert len(bytes_of(source)) == source.nbytes
    assert checkpoint.weight_bytes < open_checkpoint(tiny).weight_bytes / 3
