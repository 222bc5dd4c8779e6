"""The files that LLaMA's descendants are published as: what pack makes of them, a stage runs with transformers' logits.

Tiny stand-ins, each shaped, named and spelled as the files of that model are: K-quants in GGUF, fine-tunes of the first
LLaMA with tokens of their own, models whose only tokenizer is SentencePiece's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file

from mesh.errors import CheckpointUnsupported
from mesh.layers import LayerRange
from mesh.model.loader import load_stage
from mesh.model.local import prefill
from mesh.model.tokenizer import Tokenizer
from mesh.weights.shards.shard import read_shard
from tests.mesh.weights.tiny_gguf import write_tiny_gguf
from tests.support.agreement import reference_model, teacher_forced_logits
from tests.support.native_shards import random_weights
from tests.support.releases import PackedRelease, pack
from tests.support.tiny_models import write_tiny_checkpoint
from tests.support.vocabularies import trained_sentencepiece

PROMPT = list(range(40, 80))
TEXTS = ("the other band, 2024: été 🦙  and\tthen\n", "", " the", "don't\u0301", "▁a", "12  mothers")


def logits_of(packed: PackedRelease) -> torch.Tensor:
    release, config = packed.open(), packed.manifest.config
    layers = LayerRange(0, config.num_layers)
    paths = {ref: release.shard_path(ref) for ref in packed.manifest.shards_for(layers)}
    stage = load_stage(config, layers, paths)
    return torch.from_numpy(prefill(stage, stage.new_cache(len(PROMPT)), PROMPT))


def assert_as_transformers(packed: PackedRelease, source: Path) -> None:
    [theirs] = teacher_forced_logits(reference_model(source), PROMPT, [0])
    assert float(theirs.std()) > 0.1  # else any logits would do
    torch.testing.assert_close(logits_of(packed), theirs, atol=2e-4, rtol=0)


def tokenizer_of(packed: PackedRelease) -> Tokenizer:
    ref = packed.manifest.shard("aux")
    return Tokenizer.from_aux(read_shard(packed.open().shard_path(ref), ref))


@pytest.mark.parametrize(
    "kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
)
def test_a_quantised_file_gives_the_logits_of_transformers_reading_it(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(3)

    def blocks(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return random_weights(kind, *array.shape, rng).reshape(len(array), -1)

    sizes = {"hidden_size": 256, "num_heads": 8, "num_kv_heads": 4, "head_dim": 32, "intermediate_size": 512}
    path, _ = write_tiny_gguf(tmp_path / "gguf", quantization=Kind[kind], blocks=blocks, **sizes)
    packed = pack(path, tmp_path / "packed")
    assert packed.manifest.quantization == kind
    assert_as_transformers(packed, path)


PIECES = 339  # in the trained vocabulary: as many as its text gives
FIRST_LLAMA = ("head_dim", "num_key_value_heads", "attention_bias", "mlp_bias", "rope_theta", "rope_scaling")


def checkpoint(directory: Path, without: tuple[str, ...] = (), **shape: Any) -> Path:
    """``without`` are the fields that config.json did not have when the model was published."""
    write_tiny_checkpoint(directory, **{"bos_token_id": 1, "eos_token_id": 2, "num_layers": 2, **shape})
    config = json.loads((directory / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in without}
    (directory / "config.json").write_text(json.dumps(kept))
    return directory


def with_sentencepiece(directory: Path, symbols: tuple[str, ...] = (), **files: Any) -> Path:
    """Only the tokenizer that the first LLaMA came with."""
    (directory / "tokenizer.json").unlink()
    model = trained_sentencepiece(**({"user_defined_symbols": list(symbols)} if symbols else {}))
    (directory / "tokenizer.model").write_bytes(model)
    for name, value in {"tokenizer_config": {}, **files}.items():
        (directory / f"{name}.json").write_text(json.dumps(value))
    return directory


def as_pickles(directory: Path, extra: dict[str, torch.Tensor]) -> None:
    """Two ``pytorch_model*.bin`` with their index, as models were published before safetensors."""
    tensors = load_file(directory / "model.safetensors") | extra
    (directory / "model.safetensors").unlink()
    files = {name: f"pytorch_model-0000{1 + at % 2}-of-00002.bin" for at, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        torch.save({name: tensors[name] for name in files if files[name] == file}, directory / file)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def open_llama(directory: Path) -> dict[str, int]:
    """Pickles in parts with the rotary buffers of old, float16, no word of RoPE or of heads that are shared."""
    shape = {"dtype": "F16", "num_kv_heads": 4, "rms_norm_eps": 1e-6, "context_length": 2048}
    with_sentencepiece(checkpoint(directory, FIRST_LLAMA, vocab_size=PIECES, **shape))
    frequencies = 1e4 ** -(torch.arange(0, 16, 2) / 16)
    as_pickles(
        directory, {f"model.layers.{at}.self_attn.rotary_emb.inv_freq": frequencies for at in range(2)}
    )
    return {}


def code_llama(directory: Path) -> dict[str, int]:
    """RoPE of a million, a vocabulary of 32016, tokens that mark where text is to be filled in."""
    shape = {"hidden_size": 32, "num_heads": 2, "rope_theta": 1e6, "context_length": 16384}
    marks = ("▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>")
    with_sentencepiece(checkpoint(directory, vocab_size=32016, **shape), marks)
    return {mark: 3 + at for at, mark in enumerate(marks)}


def tiny_llama(directory: Path) -> dict[str, int]:
    """Eight query heads to a key, and a tokenizer.json."""
    checkpoint(directory, ("head_dim",), num_heads=16, num_kv_heads=2, head_dim=4, vocab_size=259)
    return {"<|im_end|>": 258}


def alpaca(directory: Path) -> dict[str, int]:
    """One token more than LLaMA has, for padding; the embedding grew by its row."""
    checkpoint(directory, FIRST_LLAMA, vocab_size=PIECES + 1, num_kv_heads=4)
    named = {"pad_token": "[PAD]", "bos_token": "<s>", "eos_token": "</s>"}
    added = {"[PAD]": PIECES}
    with_sentencepiece(directory, added_tokens=added, tokenizer_config=named, special_tokens_map=named)
    return added


def vicuna(directory: Path) -> dict[str, int]:
    """The tokens of a chat added, the embedding resized to a round number of rows beyond them."""
    checkpoint(directory, FIRST_LLAMA, vocab_size=384, num_kv_heads=4)
    added = {"<|im_start|>": PIECES, "<|im_end|>": PIECES + 1, "<tool>": PIECES + 2}
    decoder = {str(id_): {"content": text, "special": text != "<tool>"} for text, id_ in added.items()}
    named = {"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}}
    with_sentencepiece(directory, tokenizer_config={**named, "added_tokens_decoder": decoder})
    return added


MODELS: dict[str, Callable[[Path], dict[str, int]]] = {
    "OpenLLaMA": open_llama, "CodeLlama": code_llama, "TinyLlama": tiny_llama, "Alpaca": alpaca, "Vicuna": vicuna,
}  # fmt: skip


def reference_ids(directory: Path) -> Callable[[str], list[int]]:
    """What the library that the tokenizer was made for gives for a text without special tokens."""
    if (path := directory / "tokenizer.model").is_file():
        spm = pytest.importorskip("sentencepiece", reason="the oracle, a dev dependency")
        sentencepiece = spm.SentencePieceProcessor(model_file=str(path))
        return lambda text: [1, *sentencepiece.encode(text)]
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    return lambda text: list(fast(text).input_ids)


@pytest.mark.parametrize("write", MODELS.values(), ids=MODELS.keys())
def test_a_published_model_speaks_and_computes_as_its_reference(
    tmp_path: Path, write: Callable[[Path], dict[str, int]]
) -> None:
    added = write(directory := tmp_path / "model")
    packed = pack(directory, tmp_path / "packed", license_id="LicenseRef-tiny", license_text=b"terms")
    assert_as_transformers(packed, directory)
    tokenizer, expected = tokenizer_of(packed), reference_ids(directory)
    for text in TEXTS:
        assert tokenizer.encode(text) == expected(text)
    for token, id_ in added.items():
        assert tokenizer.encode(f"the band{token}") == [*expected("the band"), id_]
        assert tokenizer.token_bytes(id_) == token.encode()


def edited(**fields: Any) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | fields))

    return edit


def as_adapter(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (edited(rope_scaling={"type": "dynamic", "factor": 2.0}), "RoPE.*'dynamic'"),
        (edited(architectures=["MixtralForCausalLM"], num_local_experts=8), "mixture of experts"),
        (edited(architectures=["LlavaForConditionalGeneration"]), "sees images"),
        (as_adapter, "LoRA adapter.*merge"),
    ],
    ids=["dynamic NTK", "mixture of experts", "vision", "LoRA"],
)
def test_what_cannot_run_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, change: Callable[[Path], None], says: str
) -> None:
    change(directory := write_tiny_checkpoint(tmp_path / "model"))
    (tmp_path / "packed").mkdir()
    with pytest.raises(CheckpointUnsupported, match=says):
        pack(directory, tmp_path / "packed")
    assert [path.name for path in (tmp_path / "packed").iterdir()] == ["publisher.pub"]
