"""A Hugging Face directory comes in as it is, or is refused by the name of what stands in the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mesh.architecture import RopeConfig
from mesh.errors import CheckpointUnsupported, MeshError, NotFound
from mesh.weights.checkpoints.checkpoint import open_checkpoint
from mesh.weights.checkpoints.small_files import Terms
from tests.mesh.weights.test_gguf_checkpoint import by_hf_name, bytes_of
from tests.support.tiny_models import CHATML, write_tiny_checkpoint


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny-llama", num_layers=2)


def edit(directory: Path, name: str = "config.json", **fields: Any) -> Path:
    """Change fields of a JSON file; None removes one."""
    path = directory / name
    value = json.loads(path.read_text()) if path.exists() else {}
    value.update(fields)
    path.write_text(json.dumps({key: field for key, field in value.items() if field is not None}))
    return directory


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("tied", [True, False])
def test_tensors_come_in_bit_for_bit(tmp_path: Path, dtype: str, tied: bool) -> None:
    directory = write_tiny_checkpoint(tmp_path / "x", dtype=dtype, tied=tied, head_dim=32, num_kv_heads=1)
    tensors = load_file(directory / "model.safetensors")
    checkpoint = open_checkpoint(directory)
    found = by_hf_name(checkpoint)
    assert {name: bytes_of(source) for name, source in found.items()} == {
        name: array.tobytes() for name, array in tensors.items()
    }
    assert checkpoint.quantization == dtype
    assert checkpoint.config.tied is tied
    assert (checkpoint.config.head_dim, checkpoint.config.num_kv_heads) == (32, 1)


def test_name_template_tokenizer_and_license_come_along(tiny: Path) -> None:
    (tiny / "LICENSE").write_text("be good")
    checkpoint = open_checkpoint(tiny)
    assert checkpoint.name == "tiny-llama"
    assert checkpoint.aux_files["chat_template.jinja"].decode() == CHATML
    assert checkpoint.aux_files["tokenizer.json"] == (tiny / "tokenizer.json").read_bytes()
    assert checkpoint.terms == Terms(license=b"be good")


def test_chat_template_of_its_own_file_wins_and_default_is_chosen_among_several(tiny: Path) -> None:
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    edit(tiny, "tokenizer_config.json", chat_template=several)
    assert open_checkpoint(tiny).aux_files["chat_template.jinja"] == b"yes"
    (tiny / "chat_template.jinja").write_text("own")
    assert open_checkpoint(tiny).aux_files["chat_template.jinja"] == b"own"


def test_a_model_without_chat_template_is_fine(tiny: Path) -> None:
    (tiny / "tokenizer_config.json").unlink()
    assert "chat_template.jinja" not in open_checkpoint(tiny).aux_files


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({"rope_theta": 5e5}, RopeConfig(theta=5e5)),
        ({"rope_theta": None}, RopeConfig()),
        ({"rope_theta": 500000}, RopeConfig(theta=5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, RopeConfig(kind="linear", factor=2.0)),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, RopeConfig(kind="linear", factor=2.0)),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, RopeConfig(kind="llama3", factor=8.0)),
        (
            {"rope_theta": None, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
            RopeConfig(theta=5e5, kind="llama3", factor=8.0),
        ),
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, RopeConfig(theta=1e6)),
    ],
)  # fmt: skip
def test_rope_is_read_in_both_spellings(tiny: Path, fields: dict[str, Any], rope: RopeConfig) -> None:
    assert open_checkpoint(edit(tiny, **fields)).config.rope == rope


def test_eos_ids_of_both_files_are_merged(tiny: Path) -> None:
    edit(tiny, eos_token_id=258)
    edit(tiny, "generation_config.json", eos_token_id=[257, 258])
    assert open_checkpoint(tiny).config.eos_token_ids == (257, 258)


MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


@pytest.mark.parametrize(
    ("window", "expected"), [(..., 4096), (None, None), (100, 100), (4999, 4999), (5000, None), (9999, None)]
)
def test_a_window_of_the_whole_context_is_none(tiny: Path, window: Any, expected: int | None) -> None:
    config = json.loads((tiny / "config.json").read_text())
    config |= {**MISTRAL, "max_position_embeddings": 5000}
    if window is not ...:
        config["sliding_window"] = window
    (tiny / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(tiny).config.sliding_window == expected


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"architectures": ["GemmaForCausalLM"]},
            "GemmaForCausalLM.*supported: LlamaForCausalLM, MistralForCausalLM",
        ),
        ({"architectures": ["MixtralForCausalLM"]}, "mixture of experts"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "mixture of experts"),
        ({"architectures": ["MllamaForConditionalGeneration"]}, "sees images"),
        ({"architectures": ["LlavaLlamaForCausalLM"]}, "LlavaLlamaForCausalLM"),
        ({"architectures": ["LlamaForCausalLM", "x"]}, "not supported"),
        ({"architectures": None}, "architectures None"),
        ({"model_type": "mistral"}, "model_type mistral"),
        ({"attention_bias": True}, r"self_attn\.q_proj\.bias is missing"),
        ({"mlp_bias": True}, r"mlp\.gate_proj\.bias is missing"),
        ({"mlp_bias": "yes"}, "mlp_bias yes"),
        ({**MISTRAL, "attention_bias": True}, "attention_bias True"),
        ({**MISTRAL, "sliding_window": 0}, "sliding_window=0"),
        ({**MISTRAL, "sliding_window": "all"}, "sliding_window is all"),
        ({**QWEN2, "use_sliding_window": True}, "use_sliding_window True"),
        ({**QWEN2, "layer_types": ["full_attention", "sliding_attention"]}, "layers of sliding_attention"),
        ({**QWEN2, "mlp_bias": True}, "mlp_bias True"),
        (QWEN2, r"self_attn\.q_proj\.bias is missing"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config.*gptq"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor is missing"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate False"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1}}, "beta_fast must exceed"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size is 64"),
        ({"head_dim": None, "num_attention_heads": 5}, "5 heads do not divide"),
        ({"num_hidden_layers": 3}, r"model\.layers\.2\..* is missing"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1\..*no place"),
        ({"intermediate_size": 128}, r"gate_proj\.weight is \[96, 64\], config\.json implies \[128, 64\]"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"eos_token_id": 300}, "special token id"),
        ({"tie_word_embeddings": "yes"}, "tied"),
    ],
)
def test_a_config_that_cannot_run_is_refused_by_name(tiny: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointUnsupported, match=says):
        open_checkpoint(edit(tiny, **fields))


def rewrite(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def test_old_rotary_buffers_are_ignored_and_other_strangers_are_not(tiny: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32)}
    rewrite(tiny, lambda tensors: tensors.update(buffer))
    open_checkpoint(tiny)
    rewrite(
        tiny,
        lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}),
    )
    with pytest.raises(CheckpointUnsupported, match=r"q_proj\.bias"):
        open_checkpoint(tiny)


def test_lm_head_of_a_tied_model_is_ignored_and_of_an_untied_one_needed(tiny: Path) -> None:
    assert "lm_head.weight" not in by_hf_name(open_checkpoint(edit(tiny, tie_word_embeddings=True)))
    rewrite(tiny, lambda tensors: tensors.pop("lm_head.weight"))
    open_checkpoint(tiny)
    with pytest.raises(CheckpointUnsupported, match=r"lm_head\.weight is missing"):
        open_checkpoint(edit(tiny, tie_word_embeddings=False))


def test_integer_weights_are_refused_by_name(tiny: Path) -> None:
    rewrite(tiny, lambda tensors: tensors.update({"model.norm.weight": np.zeros(64, np.uint8)}))
    with pytest.raises(CheckpointUnsupported, match=r"model\.norm\.weight is U8"):
        open_checkpoint(tiny)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(tiny: Path, name: str) -> None:
    (tiny / name).unlink()
    with pytest.raises(NotFound, match=name.replace(".", r"\.")):
        open_checkpoint(tiny)


@pytest.mark.parametrize("content", [b"", b"12345678", bytes(100), (2**63).to_bytes(8, "little") + b"{}"])
def test_a_file_that_is_not_safetensors_is_refused(tiny: Path, content: bytes) -> None:
    (tiny / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointUnsupported, match="not a safetensors file"):
        open_checkpoint(tiny)


def test_a_truncated_safetensors_is_refused(tiny: Path) -> None:
    data = (tiny / "model.safetensors").read_bytes()
    (tiny / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(CheckpointUnsupported, match="bytes of data"):
        open_checkpoint(tiny)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff"])
def test_json_that_can_be_read_in_two_ways_is_refused(tiny: Path, name: str, content: bytes) -> None:
    (tiny / name).write_bytes(content)
    with pytest.raises(MeshError, match=name.replace(".", r"\.")):
        open_checkpoint(tiny)


def test_source_digest_covers_every_file_read_and_no_other(tiny: Path) -> None:
    before = open_checkpoint(tiny).source_digest()
    (tiny / "README.md").write_text("hello")
    assert open_checkpoint(tiny).source_digest() == before
    edit(tiny, "tokenizer_config.json", chat_template="other")
    assert open_checkpoint(tiny).source_digest() != before
