"""Which engine computes, and that a stage loaded with either is the same model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch

from mesh.errors import UsageError
from mesh.layers import LayerRange
from mesh.model.engines import LoadedStage, choose_engine
from mesh.model.llama import Stage
from mesh.model.loader import load_stage
from mesh.model.local import prefill
from mesh.model.native import library
from mesh.model.native_stage import NativeStage
from tests.mesh.weights.tiny_gguf import write_tiny_gguf
from tests.support.releases import PackedRelease, pack, pack_tiny

needs_library = pytest.mark.skipif(not library.is_available(), reason="the native library is not built")

PROMPT = list(range(40))


def load(packed: PackedRelease, engine: str) -> LoadedStage:
    release, config = packed.open(), packed.manifest.config
    layers = LayerRange(0, config.num_layers)
    paths = {ref: release.shard_path(ref) for ref in release.manifest.shards_for(layers)}
    return load_stage(config, layers, paths, engine=engine)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load", lambda: None)


@needs_library
def test_auto_is_native_on_a_cpu() -> None:
    choice = choose_engine("auto", "cpu")
    assert (choice.name, choice.kernel_id, choice.why_not_native) == ("native", library.kernel_id(), None)


@pytest.mark.usefixtures("no_library")
def test_without_the_library_auto_is_torch_and_says_why() -> None:
    choice = choose_engine("auto", "cpu")
    assert choice.name == "torch"
    assert choice.kernel_id.startswith("torch-")
    assert "compiler" in (choice.why_not_native or "")


@pytest.mark.usefixtures("no_library")
def test_without_the_library_native_is_refused() -> None:
    with pytest.raises(UsageError, match="not built"):
        choose_engine("native", "cpu")


@pytest.mark.parametrize(("engine", "device"), [("native", "cuda:0"), ("fast", "cpu")])
def test_an_engine_that_cannot_be_is_refused(engine: str, device: str) -> None:
    with pytest.raises(UsageError, match="engine"):
        choose_engine(engine, device)


@needs_library
def test_both_engines_load_the_same_model(tmp_path: Path) -> None:
    packed = pack_tiny(tmp_path)
    native, reference = load(packed, "auto"), load(packed, "torch")
    assert isinstance(native, NativeStage)
    assert isinstance(reference, Stage)
    ours, theirs = (prefill(stage, stage.new_cache(len(PROMPT)), PROMPT) for stage in (native, reference))
    torch.testing.assert_close(torch.from_numpy(ours), torch.from_numpy(theirs), atol=1e-4, rtol=1e-4)


@needs_library
def test_a_type_the_library_does_not_know_is_computed_with_torch(tmp_path: Path) -> None:
    path, _ = write_tiny_gguf(tmp_path, quantization=gguf.GGMLQuantizationType.Q5_0)
    packed = pack(path, tmp_path / "release")
    assert isinstance(load(packed, "auto"), Stage)
    with pytest.raises(UsageError, match="Q5_0"):
        load(packed, "native")


@pytest.mark.parametrize(
    "change",
    [{"qkv_bias": True}, {"output_bias": True}, {"mlp_bias": True}, {"qk_norm": True}, {"sliding_window": 8}],
)
def test_config_that_the_library_does_not_compute_is_named(change: dict[str, object]) -> None:
    from mesh.model.native_stage import unsupported_features
    from tests.support.stage_servers import CONFIG

    assert unsupported_features(CONFIG) == []
    assert len(unsupported_features(replace(CONFIG, **change))) == 1
