"""Importing a GGUF loses nothing: the reference writer's files come out as the tensors they were made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.architecture import RopeConfig
from mesh.errors import CheckpointUnsupported, NotFound
from mesh.weights.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mesh.weights.checkpoints.gguf_config import llama3_factors
from mesh.weights.checkpoints.gguf_file import TYPE_NAMES, read_gguf
from mesh.weights.checkpoints.rope_layout import rows_to_half
from mesh.weights.shards.shard import TensorSource
from mesh.weights.shards.tensor_types import BLOCK_TYPES
from tests.mesh.weights.tiny_gguf import gguf_name_of, interleave_rows, write_tiny_gguf

Array = np.ndarray[Any, Any]


def bytes_of(source: TensorSource) -> bytes:
    return b"".join(bytes(chunk) for chunk in source.chunks())


def by_hf_name(checkpoint: Checkpoint) -> dict[str, TensorSource]:
    """Sources under Hugging Face's full names."""
    return {
        (
            source.name
            if source.name == "lm_head.weight"
            else f"model.{source.name}"
            if layer is None
            else f"model.layers.{layer}.{source.name}"
        ): source
        for (_, layer), sources in checkpoint.shards.items()
        for source in sources
    }


def test_block_table_equals_ggmls() -> None:
    for name, size in BLOCK_TYPES.items():
        assert gguf.GGML_QUANT_SIZES[Kind[name]] == size
    assert all(Kind(id_).name == name for id_, name in TYPE_NAMES.items())


def test_reader_equals_the_reference_reader(tmp_path: Path) -> None:
    path, _ = write_tiny_gguf(tmp_path, quantization=Kind.Q8_0)
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    expected = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == expected
    assert [
        (t.name, t.type, list(t.shape)[::-1], t.offset) for t in ours.tensors.values()
    ] == [(t.name, t.tensor_type.name, list(t.shape), t.data_offset) for t in theirs.tensors]  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head_dim", [16, 8])
def test_float_tensors_come_out_bit_for_bit_in_hf_order(tmp_path: Path, tied: bool, head_dim: int) -> None:
    path, tensors = write_tiny_gguf(tmp_path, tied=tied, head_dim=head_dim)
    checkpoint = open_checkpoint(path)
    found = by_hf_name(checkpoint)
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        assert (found[name].type, found[name].shape) == ("F32", array.shape)
        assert bytes_of(found[name]) == array.tobytes()
    assert checkpoint.config.tied is tied
    assert checkpoint.config.head_dim == head_dim


def test_config_is_read(tmp_path: Path) -> None:
    config = open_checkpoint(
        write_tiny_gguf(tmp_path, metadata={"tokenizer.ggml.eot_token_id": 257})[0]
    ).config
    assert config.rms_norm_eps == 1e-5  # not its float32 neighbour
    assert config.rope == RopeConfig(theta=10000.0)
    assert (config.num_heads, config.num_kv_heads, config.vocab_size) == (4, 2, 300)
    assert config.bos_token_id == 256
    assert config.eos_token_ids == (257, 258)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.F16, Kind.BF16])
def test_quantised_blocks_are_kept_bit_for_bit(tmp_path: Path, kind: Kind) -> None:
    path, tensors = write_tiny_gguf(tmp_path, quantization=kind)
    checkpoint = open_checkpoint(path)
    assert checkpoint.quantization == kind.name
    for name, source in by_hf_name(checkpoint).items():
        if source.type == "F32":
            continue
        # Quantising works on rows, so moving rows and quantising commute.
        blocks = quantize(tensors[name], kind)
        assert source.type == kind.name
        assert bytes_of(source) == blocks.tobytes()


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_kept_bit_for_bit(tmp_path: Path, kind: str) -> None:
    rng, stored = np.random.default_rng(7), {}

    def random_blocks(name: str, array: Array) -> Array:
        """Of a type that the reference cannot quantise to."""
        weights, nbytes = BLOCK_TYPES[kind]
        rows = np.frombuffer(rng.bytes(array.size // weights * nbytes), np.uint8).reshape(array.shape[0], -1)
        stored[name] = rows.tobytes()
        return rows

    sizes = {"hidden_size": 256, "num_heads": 4, "head_dim": 64, "intermediate_size": 256}
    path, _ = write_tiny_gguf(tmp_path, quantization=Kind[kind], blocks=random_blocks, **sizes)
    found = by_hf_name(open_checkpoint(path))
    assert stored
    assert {name: bytes_of(found[name]) for name in stored} == stored


@settings(max_examples=80, deadline=None)
@given(
    heads=st.integers(1, 5),
    pairs=st.integers(1, 8),
    row_bytes=st.integers(1, 40),
    cuts=st.lists(st.integers(1, 300), max_size=8),
)
def test_moving_rows_undoes_llama_cpps_permutation(
    heads: int, pairs: int, row_bytes: int, cuts: list[int]
) -> None:
    rows = np.random.default_rng(row_bytes).integers(0, 256, (heads * 2 * pairs, row_bytes), np.uint8)
    stored = interleave_rows(rows, heads).tobytes()

    def chunks() -> Any:
        at = 0
        for cut in cuts:
            yield stored[at : at + cut]
            at += cut
        yield stored[at:]

    assert b"".join(rows_to_half(chunks(), 2 * pairs, row_bytes)) == rows.tobytes()


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rope_scaling_is_recognised_by_its_factors(tmp_path: Path, factor: float) -> None:
    rope = RopeConfig(theta=500000.0, kind="llama3", factor=factor)
    factors = np.array(llama3_factors(rope, 64), np.float32)
    path, _ = write_tiny_gguf(
        tmp_path,
        head_dim=64,
        metadata={"llama.rope.freq_base": 500000.0},
        extra_tensors={"rope_freqs.weight": factors},
    )
    assert open_checkpoint(path).config.rope == rope


def test_llama3_factors_are_those_of_transformers() -> None:
    from transformers import LlamaConfig as HfConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for factor in (8.0, 32.0):
        scaling = {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_theta": 500000.0,
        }  # fmt: skip
        config = HfConfig(hidden_size=512, num_attention_heads=4, head_dim=128, rope_parameters=scaling,
                          max_position_embeddings=131072)  # fmt: skip
        expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        rope = RopeConfig(theta=500000.0, kind="llama3", factor=factor)
        plain = 500000.0 ** -(np.arange(0, 128, 2) / 128)
        np.testing.assert_allclose(plain / llama3_factors(rope, 128), expected.numpy(), rtol=1e-5)


def test_rope_scaling_that_is_not_llama3s_is_refused(tmp_path: Path) -> None:
    factors = np.array(llama3_factors(RopeConfig(kind="llama3", factor=8.0), 16), np.float32) * 1.001
    path, _ = write_tiny_gguf(tmp_path, extra_tensors={"rope_freqs.weight": factors})
    with pytest.raises(CheckpointUnsupported, match=r"rope_freqs\.weight"):
        open_checkpoint(path)


def test_linear_rope_scaling_is_read(tmp_path: Path) -> None:
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    path, _ = write_tiny_gguf(tmp_path, metadata=scaling)
    assert open_checkpoint(path).config.rope == RopeConfig(kind="linear", factor=4.0)


YARN = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}


def test_yarn_rope_scaling_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    config = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    path, _ = write_tiny_gguf(
        tmp_path, metadata=YARN | {"llama.rope.scaling.original_context_length": 128}, rope=config
    )
    assert open_checkpoint(path).config.rope == open_checkpoint(tmp_path / "hf").config.rope


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {"architecture": "qwen2"},
    "qwen3": {"architecture": "qwen3", "head_dim": 32},
    "qwen3 with biases": {"architecture": "qwen3", "attention_bias": True},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
}


@pytest.mark.parametrize("sizes", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_every_architecture_comes_out_as_the_directory_it_was_made_from(
    tmp_path: Path, sizes: dict[str, Any]
) -> None:
    path, tensors = write_tiny_gguf(tmp_path, **sizes)
    ours, theirs = open_checkpoint(path), open_checkpoint(tmp_path / "hf")
    assert replace(ours.config, eos_token_ids=()) == replace(theirs.config, eos_token_ids=())
    found = by_hf_name(ours)
    assert {name: bytes_of(source) for name, source in found.items()} == {
        name: array.tobytes() for name, array in tensors.items()
    }


@pytest.mark.parametrize("architecture", ["gemma", "qwen2moe", "llama4", "mllama"])
def test_another_architecture_is_refused_by_name(tmp_path: Path, architecture: str) -> None:
    path, _ = write_tiny_gguf(tmp_path, architecture=architecture)
    with pytest.raises(
        CheckpointUnsupported, match=f"'{architecture}' is not supported; supported: llama, qwen2"
    ):
        open_checkpoint(path)


def test_a_bias_that_only_some_layers_have_is_refused(tmp_path: Path) -> None:
    drop = frozenset({"blk.1.attn_q.bias"})
    path, _ = write_tiny_gguf(tmp_path, attention_bias=True, drop=drop)
    with pytest.raises(CheckpointUnsupported, match=r"blk\.1\.attn_q\.bias is missing"):
        open_checkpoint(path)


def test_parts_come_in_as_the_one_file_they_were(tmp_path: Path) -> None:
    whole = open_checkpoint(write_tiny_gguf(tmp_path / "whole")[0])
    first, _ = write_tiny_gguf(tmp_path / "parts", num_parts=3)
    for part in (first, first.with_name("tiny-00002-of-00003.gguf")):  # whichever is named
        checkpoint = open_checkpoint(part)
        assert (checkpoint.config, checkpoint.name) == (whole.config, "tiny")
        assert checkpoint.aux_files == whole.aux_files
        assert {name: bytes_of(s) for name, s in by_hf_name(checkpoint).items()} == {
            name: bytes_of(s) for name, s in by_hf_name(whole).items()
        }
        assert [path.name for path in checkpoint.source_files] == [
            f"tiny-0000{number}-of-00003.gguf" for number in (1, 2, 3)
        ]
    before = open_checkpoint(first).source_digest()
    third = first.with_name("tiny-00003-of-00003.gguf")
    third.write_bytes(third.read_bytes() + b" ")
    assert open_checkpoint(first).source_digest() != before


def test_a_part_that_is_missing_or_of_another_split_is_named(tmp_path: Path) -> None:
    first, _ = write_tiny_gguf(tmp_path, num_parts=3)
    second, third = (first.with_name(f"tiny-0000{number}-of-00003.gguf") for number in (2, 3))
    kept = second.read_bytes()
    second.write_bytes(third.read_bytes())
    with pytest.raises(CheckpointUnsupported, match=r"00002-of-00003\.gguf: not part 2 of 3"):
        open_checkpoint(first)
    second.unlink()
    with pytest.raises(NotFound, match=r"00002-of-00003\.gguf does not exist"):
        open_checkpoint(first)
    second.write_bytes(kept)
    first = first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(CheckpointUnsupported, match="one of 3 parts, whose name"):
        open_checkpoint(first)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"llama.expert_count": 8}, "mixture of 8 experts"),
        ({"general.type": "adapter"}, "a LoRA adapter"),
        ({"llama.rope.scaling.type": "longrope"}, "'longrope'"),
        ({"llama.rope.scaling.type": "yarn"}, "factor"),
        ({**YARN, "llama.rope.scaling.yarn_beta_fast": 8.0}, "yarn_beta_fast"),
        ({"llama.rope.scaling.attn_factor": 0.5}, "attention factor"),
        ({"llama.rope.dimension_count": 8}, "8 of 16 dimensions"),
        ({"llama.attention.value_length": 8}, "values of 8"),
        ({"llama.vocab_size": 301}, "301 tokens"),
        ({"llama.attention.head_count": [4, 2]}, "differs between layers"),
        ({"llama.attention.head_count": 0}, "0 heads"),
        ({"llama.attention.head_count_kv": 3}, "multiple"),
        ({"llama.attention.key_length": 15, "llama.rope.dimension_count": None}, "odd|values of"),
        ({"llama.block_count": 3}, r"blk\.2\.attn_norm\.weight is missing"),
        ({"llama.block_count": 1}, r"blk\.1\..*no place in a LLaMA of 1 layers"),
        ({"llama.block_count": 0}, "num_layers=0"),
        ({"llama.block_count": None}, "block_count is missing"),
        ({"llama.context_length": "long"}, "context_length is 'long'"),
        ({"llama.feed_forward_length": 128}, r"ffn_gate\.weight is \[96, 64\]"),
        ({"tokenizer.ggml.eos_token_id": 300}, "special token id"),
        ({"tokenizer.ggml.eos_token_id": "x"}, "eos_token_id"),
        ({"split.count": 2}, "2 parts, whose name should end in -00001-of-00002.gguf"),
        ({"tokenizer.ggml.model": "bert"}, "'bert'"),
        ({"tokenizer.ggml.pre": "tekken"}, "'tekken'"),
        ({"tokenizer.ggml.pre": None}, "convert it again"),
        ({"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.token_type": [1]}, "token types"),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}, "'a' comes twice"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "'a b c'"),
        ({"tokenizer.ggml.merges": ["t zz"]}, "'t zz'"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_by_name(tmp_path: Path, metadata: dict[str, Any], says: str) -> None:
    path, _ = write_tiny_gguf(tmp_path, metadata=metadata)
    with pytest.raises(CheckpointUnsupported, match=says):
        open_checkpoint(path)


def test_an_unsupported_tensor_type_is_refused_by_name(tmp_path: Path) -> None:
    path, _ = write_tiny_gguf(tmp_path, quantization=Kind.F16)
    data = path.read_bytes()
    at = data.index(b"blk.0.ffn_down.weight") + len("blk.0.ffn_down.weight") + 4 + 16
    path.write_bytes(data[:at] + (20).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(CheckpointUnsupported, match=r"blk\.0\.ffn_down\.weight is IQ4_NL"):
        open_checkpoint(path)


def test_an_unknown_tensor_is_refused_by_name(tmp_path: Path) -> None:
    path, _ = write_tiny_gguf(tmp_path, extra_tensors={"blk.0.attn_sinks.weight": np.zeros(64, np.float32)})
    with pytest.raises(CheckpointUnsupported, match=r"blk\.0\.attn_sinks\.weight"):
        open_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"GG", b"GGUF", b"\x80\x04pickle", b"GGUF\0\0\0\3" + bytes(40)])
def test_a_file_that_is_no_gguf_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(CheckpointUnsupported, match=r"x\.gguf"):
        open_checkpoint(tmp_path / "x.gguf")


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nowhere\.gguf"):
        open_checkpoint(tmp_path / "nowhere.gguf")


@pytest.fixture(scope="module")
def tiny_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny"))[0].read_bytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_cut_or_damaged_file_is_read_whole_or_refused(
    tmp_path_factory: pytest.TempPathFactory, tiny_bytes: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "x.gguf"
    if data.draw(st.booleans()):
        path.write_bytes(tiny_bytes[: data.draw(st.integers(0, len(tiny_bytes) - 64))])
        with pytest.raises(CheckpointUnsupported):
            open_checkpoint(path)
        return
    damaged = bytearray(tiny_bytes)
    at = data.draw(st.integers(0, 8192))
    damaged[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    path.write_bytes(damaged)
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointUnsupported:
        return
    assert {len(bytes_of(s)) == s.nbytes for sources in checkpoint.shards.values() for s in sources} == {True}


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0, Kind.Q4_1])
def test_values_equal_transformers_reading_of_the_same_file(tmp_path: Path, kind: Kind) -> None:
    import torch
    from transformers import LlamaConfig as HfConfig
    from transformers import LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path, _ = write_tiny_gguf(tmp_path, quantization=kind)
    with torch.device("meta"):  # only to tell transformers the names
        model = LlamaForCausalLM(HfConfig(hidden_size=64, num_hidden_layers=2))
    read = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)
    found = by_hf_name(open_checkpoint(path))
    assert set(found) == set(read["tensors"])
    for name, source in found.items():
        rows = np.frombuffer(bytes_of(source), np.uint8).reshape(source.shape[0], -1)
        values = dequantize(rows, Kind[source.type]).reshape(source.shape)
        np.testing.assert_array_equal(values, read["tensors"][name].numpy(), err_msg=name)


@pytest.mark.real_model
def test_the_real_file_is_read(real_gguf: Path) -> None:
    checkpoint = open_checkpoint(real_gguf)
    config = checkpoint.config
    assert (config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads) == (30, 576, 9, 3)
    assert (config.vocab_size, config.tied, config.rope) == (49152, True, RopeConfig(theta=100000.0))
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))
    assert checkpoint.quantization == "Q4_1"
    assert checkpoint.shards["embed", None][0].type == "Q8_0"
    # Every block is there once: the rows of a tensor are only ever moved.
    file = read_gguf(real_gguf)
    for source in checkpoint.shards["layer", 29]:
        tensor = file.tensors[gguf_name_of(f"model.layers.29.{source.name}")]
        stored = real_gguf.read_bytes()[tensor.offset : tensor.offset + source.nbytes]
        width = source.nbytes // source.shape[0]
        moved = bytes_of(source)
        assert sorted(moved[at : at + width] for at in range(0, len(moved), width)) == sorted(
            stored[at : at + width] for at in range(0, len(stored), width)
        )
