"""Meta's slices come together as the model they were cut from, bit for bit."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.architecture import RopeConfig
from mesh.errors import CheckpointUnsupported, NotFound
from mesh.layers import LayerRange
from mesh.model.loader import load_stage
from mesh.model.local import prefill
from mesh.weights.checkpoints.checkpoint import open_checkpoint
from mesh.weights.checkpoints.tensor_streams import equal_blocks, join_columns
from mesh.weights.shards.shard import TensorSource
from tests.mesh.weights.test_gguf_checkpoint import by_hf_name, bytes_of
from tests.support.agreement import reference_model, teacher_forced_logits
from tests.support.releases import pack
from tests.support.tiny_meta import write_tiny_meta

LAYOUTS: dict[str, dict[str, Any]] = {
    "7B": {"num_ranks": 1},
    "13B": {"num_ranks": 2},
    "33B": {"num_ranks": 4},
    "65B": {"num_ranks": 8},
    "70B, grouped": {"num_ranks": 2, "num_kv_heads": 2, "params": {"n_kv_heads": 2}},
    "Llama 3 8B": {"num_ranks": 1, "embedding_dim": 0, "num_kv_heads": 2, "params": {"n_kv_heads": 2}},
    "Llama 3 70B": {"num_ranks": 8, "embedding_dim": 0, "params": {"n_kv_heads": 8, "vocab_size": 512}},
    "Llama 3, bfloat16": {"num_ranks": 4, "embedding_dim": 0, "dtype": torch.bfloat16},
    "LLaMA 1, float16": {"num_ranks": 2, "dtype": torch.float16},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_slices_join_to_the_tensors_they_were_cut_from(tmp_path: Path, layout: dict[str, Any]) -> None:
    tensors = write_tiny_meta(tmp_path / "meta", **layout)
    found = by_hf_name(open_checkpoint(tmp_path / "meta"))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].shape == tuple(tensor.shape)
        assert bytes_of(found[name]) == tensor.view(torch.uint8).numpy().tobytes(), name


def test_a_packed_model_computes_what_transformers_computes_from_hugging_faces_form(tmp_path: Path) -> None:
    write_tiny_meta(tmp_path / "meta", num_ranks=4)
    packed = pack(tmp_path / "meta", tmp_path / "packed", license_id="LicenseRef-tiny", license_text=b"terms")
    release, config = packed.open(), packed.manifest.config
    layers = LayerRange(0, config.num_layers)
    paths = {ref: release.shard_path(ref) for ref in packed.manifest.shards_for(layers)}
    stage = load_stage(config, layers, paths)
    prompt = list(range(40, 80))
    [theirs] = teacher_forced_logits(reference_model(tmp_path / "meta-hf"), prompt, [0])
    ours = prefill(stage, stage.new_cache(len(prompt)), prompt)
    torch.testing.assert_close(torch.from_numpy(ours), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("params", "size"),
    [
        ({"dim": 4096, "multiple_of": 256}, 11008),
        ({"dim": 5120, "multiple_of": 256}, 13824),
        ({"dim": 6656, "multiple_of": 256}, 17920),
        ({"dim": 8192, "multiple_of": 256}, 22016),
        ({"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3}, 28672),
        ({"dim": 4096, "multiple_of": 1024, "ffn_dim_multiplier": 1.3}, 14336),
        ({"dim": 2048, "multiple_of": 256, "ffn_dim_multiplier": 1.5}, 8192),
        ({"dim": 3072, "multiple_of": 256, "ffn_dim_multiplier": 1.0}, 8192),
    ],
)
def test_feed_forward_is_as_wide_as_in_the_published_models(params: dict[str, Any], size: int) -> None:
    from mesh.weights.checkpoints.meta_checkpoint import _Params

    values = {"n_layers": 1, "n_heads": 32, **params}
    config = _Params(Path("params.json"), values).config(1000, False, {"tokenizer.ggml.model": "llama"})
    assert config.intermediate_size == size


@pytest.mark.parametrize(
    ("params", "context_length", "rope"),
    [
        ({}, 8192, RopeConfig()),
        ({"rope_theta": 500000.0}, 8192, RopeConfig(theta=5e5)),
        ({"use_scaled_rope": True, "rope_theta": 500000.0}, 131072, RopeConfig(5e5, "llama3", 8.0)),
        (
            {"use_scaled_rope": True, "rope_scaling_factor": 32},
            131072,
            RopeConfig(kind="llama3", factor=32.0),
        ),
    ],
)
def test_rope_and_context_of_llama3_are_known(
    tmp_path: Path, params: dict[str, Any], context_length: int, rope: RopeConfig
) -> None:
    write_tiny_meta(tmp_path / "meta", num_ranks=1, params=params)
    config = open_checkpoint(tmp_path / "meta").config
    assert (config.context_length, config.rope) == (context_length, rope)
    assert config.bos_token_id == 256
    assert config.eos_token_ids == (257, 264, 265)  # end of text, of message, of turn


def test_llama1_and_2_have_sentencepieces_tokenizer_beside_or_above_them(tmp_path: Path) -> None:
    spm = pytest.importorskip("sentencepiece", reason="writes the tokenizer; a dev dependency")
    from tests.support.vocabularies import trained_sentencepiece

    write_tiny_meta(tmp_path / "7B", num_ranks=1)
    (tmp_path / "7B" / "tokenizer.model").unlink()
    with pytest.raises(NotFound, match=r"tokenizer\.model"):
        open_checkpoint(tmp_path / "7B")
    (tmp_path / "tokenizer.model").write_bytes(trained_sentencepiece())
    checkpoint = open_checkpoint(tmp_path / "7B")
    assert (checkpoint.config.context_length, checkpoint.config.eos_token_ids) == (4096, (2,))
    assert "tokenizer.model" in {path.name for path in checkpoint.source_files}
    assert b'"byte_fallback":true' in checkpoint.aux_files["tokenizer.json"]
    assert (
        spm.SentencePieceProcessor(model_proto=trained_sentencepiece()).bos_id()
        == checkpoint.config.bos_token_id
    )
    path = tmp_path / "7B" / "params.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norm_eps": 1e-6}))
    assert open_checkpoint(tmp_path / "7B").config.context_length == 2048


def change(directory: Path, rank: int, **tensors: torch.Tensor | None) -> None:
    path = directory / f"consolidated.{rank:02d}.pth"
    held = torch.load(path)
    held.update({name.replace("__", "."): tensor for name, tensor in tensors.items()})
    torch.save({name: tensor for name, tensor in held.items() if tensor is not None}, path)


def test_norms_that_differ_between_ranks_are_refused(tmp_path: Path) -> None:
    write_tiny_meta(tmp_path / "meta", num_ranks=2)
    change(tmp_path / "meta", 1, norm__weight=torch.ones(64))
    with pytest.raises(CheckpointUnsupported, match=r"tensor norm\.weight differs between the files"):
        open_checkpoint(tmp_path / "meta")


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"output__weight": torch.ones(3, 64)}, r"01\.pth: tensor output\.weight is \[3, 64\], unlike in consolidated\.00"),
        ({"output__weight": torch.ones(256, 64).half()}, r"01\.pth: tensor output\.weight is F16"),
        ({"output__weight": None}, r"01\.pth: tensor output\.weight is missing"),
        ({"layers__0__attention__wq__lora__weight": torch.ones(2)}, r"lora\.weight' has no place"),
        ({"layers__2__attention_norm__weight": torch.ones(64)}, r"layers\.2\..*no place in a LLaMA of 2 layers"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(tmp_path: Path, tensors: dict[str, Any], says: str) -> None:
    write_tiny_meta(tmp_path / "meta", num_ranks=2)
    change(tmp_path / "meta", 1, **tensors)
    with pytest.raises(CheckpointUnsupported, match=says):
        open_checkpoint(tmp_path / "meta")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "meta"
    write_tiny_meta(directory, num_ranks=4)
    (directory / "consolidated.03.pth").unlink()
    with pytest.raises(CheckpointUnsupported, match=r"3 consolidated files.*Is one missing"):
        open_checkpoint(directory)
    (directory / "consolidated.02.pth").unlink()
    with pytest.raises(
        CheckpointUnsupported, match=r"w1\.weight|wo\.weight|is \[.*params\.json implies|tokens"
    ):
        open_checkpoint(directory)
    (directory / "consolidated.00.pth").unlink()
    with pytest.raises(CheckpointUnsupported, match=r"consolidated\.00\.pth is missing"):
        open_checkpoint(directory)
    write_tiny_meta(tmp_path / "other", num_ranks=1)
    (tmp_path / "other" / "params.json").unlink()
    with pytest.raises(NotFound, match=r"params\.json"):
        open_checkpoint(tmp_path / "other")


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"moe_args": {"num_experts": 8}}, "moe_args is not supported"),
        ({"vision_chunk_size": 448}, "vision_chunk_size is not supported"),
        ({"quantization_args": {"scheme": "int4"}}, "quantization_args is not supported"),
        ({"dim": "64"}, "dim is 64"),
        ({"dim": None}, "dim is missing"),
        ({"n_heads": 7}, "7 heads do not divide"),
        ({"multiple_of": 0}, "multiple_of is 0"),
        (
            {"multiple_of": 64, "ffn_dim_multiplier": 2},
            r"w1\.weight of 2 files is \[192, 64\], params\.json implies",
        ),
        ({"vocab_size": 600}, "600 tokens, the embedding has 512"),
    ],
)
def test_params_that_cannot_run_are_refused_by_name(
    tmp_path: Path, params: dict[str, Any], says: str
) -> None:
    write_tiny_meta(tmp_path / "meta", num_ranks=2, params=params)
    with pytest.raises(CheckpointUnsupported, match=says):
        open_checkpoint(tmp_path / "meta")


def test_source_digest_covers_every_rank(tmp_path: Path) -> None:
    write_tiny_meta(tmp_path / "meta", num_ranks=2)
    names = {path.name for path in open_checkpoint(tmp_path / "meta").source_files}
    assert names == {"consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model"}


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    widths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    chunk=st.integers(1, 200),
)
def test_columns_join_however_the_parts_are_chunked(rows: int, widths: list[int], chunk: int) -> None:
    rng = np.random.default_rng(rows)
    arrays = [rng.integers(0, 255, (rows, width), np.uint8) for width in widths]

    def source(array: Any) -> TensorSource:
        data = array.tobytes()
        return TensorSource(
            "x", "U8", array.shape, lambda: (data[at : at + chunk] for at in range(0, len(data), chunk))
        )

    joined = join_columns([source(array) for array in arrays])
    assert bytes_of(joined) == np.concatenate(arrays, axis=1).tobytes()
    blocks = list(equal_blocks(joined.chunks(), 7))
    assert b"".join(blocks) == bytes_of(joined)
    assert {len(block) for block in blocks[:-1]} <= {7}


def test_joining_is_bounded_by_chunks_not_by_the_tensor() -> None:
    def zeros() -> Iterator[bytes]:
        return (bytes(1 << 20) for _ in range(32))

    part = TensorSource("x", "BF16", (4096, 4096), zeros)  # 32 MiB
    tracemalloc.start()
    total = sum(len(chunk) for chunk in join_columns([part] * 8).chunks())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 8 * 32 << 20
    assert peak < 32 << 20
