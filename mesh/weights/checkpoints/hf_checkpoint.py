"""Import of a Hugging Face directory: ``config.json``, the weights, ``tokenizer.json`` or ``tokenizer.model``.

Names and RoPE order are already the canonical ones. Knows the small files and which tensor goes where; what the config
means is in ``hf_config.py``, in which files the tensors lie in ``hf_weights.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mesh import strict_json
from mesh.architecture import LlamaConfig
from mesh.errors import CheckpointUnsupported
from mesh.weights.checkpoints.checkpoint import Checkpoint, release_name
from mesh.weights.checkpoints.gguf_tokenizer import tokenizer_json
from mesh.weights.checkpoints.hf_config import llama_config
from mesh.weights.checkpoints.hf_weights import find_weights
from mesh.weights.checkpoints.layout import Place, tensor_shapes, weight_places
from mesh.weights.checkpoints.small_files import MAX_JSON_BYTES, MAX_TEXT_BYTES, SmallFiles, parse_object
from mesh.weights.checkpoints.tokenizer_model import MAX_TOKENIZER_MODEL_BYTES, vocabulary
from mesh.weights.shards.shard import TensorSource

_DTYPES = ("F32", "F16", "BF16")


def open_hf(directory: Path) -> Checkpoint:
    """Raises NotFound for a missing file, CheckpointUnsupported for one this version cannot use."""
    reader = SmallFiles(directory, "a Hugging Face directory of a LLaMA")
    weights = find_weights(directory)
    config = llama_config(reader.json("config.json"), reader.json("generation_config.json", optional=True))
    sources = _sources(directory, weights.tensors, config)
    aux_files = {"tokenizer.json": _tokenizer(reader, config)}
    if template := _chat_template(reader):
        aux_files["chat_template.jinja"] = template.encode()
    return Checkpoint(
        name=release_name(directory.resolve().name),
        config=config,
        shards=sources,
        aux_files=aux_files,
        terms=reader.terms(),
        source=directory,
        source_files=(*weights.files, *reader.read),
    )


def _sources(
    directory: Path, tensors: Mapping[str, TensorSource], config: LlamaConfig
) -> dict[Place, tuple[TensorSource, ...]]:
    wanted: set[str] = set()
    sources: dict[Place, tuple[TensorSource, ...]] = {}
    for role, layer in weight_places(config):
        prefix = "model." if layer is None else f"model.layers.{layer}."
        made = []
        for name, shape in tensor_shapes(config, role).items():
            full_name = name if name == "lm_head.weight" else prefix + name
            wanted.add(full_name)
            made.append(_source(directory, tensors, full_name, name, shape))
        sources[role, layer] = tuple(made)
    # Buffers that old versions saved: recomputed from the config. And the twin of a tied embedding.
    ignored = {name for name in tensors if name.endswith(".rotary_emb.inv_freq")} | {"lm_head.weight"}
    if unknown := sorted(tensors.keys() - wanted - ignored):
        raise CheckpointUnsupported(
            f"{directory}: tensor {unknown[0]!r} has no place in a LLaMA of {config.num_layers} layers"
        )
    return sources


def _source(
    directory: Path, tensors: Mapping[str, TensorSource], full_name: str, name: str, shape: tuple[int, ...]
) -> TensorSource:
    if (found := tensors.get(full_name)) is None:
        raise CheckpointUnsupported(f"{directory}: tensor {full_name} is missing")
    if found.type not in _DTYPES:
        raise CheckpointUnsupported(
            f"{directory}: tensor {full_name} is {found.type}; supported: {', '.join(_DTYPES)}"
        )
    if found.shape != shape:
        raise CheckpointUnsupported(
            f"{directory}: tensor {full_name} is {list(found.shape)}, config.json implies {list(shape)}"
        )
    return replace(found, name=name)


def _tokenizer(reader: SmallFiles, config: LlamaConfig) -> bytes:
    """The ``tokenizer.json``; where there is none, one made of ``tokenizer.model``."""
    path = reader.directory / "tokenizer.json"
    if not path.is_file() and (reader.directory / "tokenizer.model").is_file():
        return _converted_tokenizer(reader, config)
    data = reader.bytes("tokenizer.json", MAX_JSON_BYTES)
    if not isinstance(parse_object(path, data).get("model"), dict):
        raise CheckpointUnsupported(f"{path}: no model in it; is it of Hugging Face's tokenizers?")
    return data


def _converted_tokenizer(reader: SmallFiles, config: LlamaConfig) -> bytes:
    path = reader.directory / "tokenizer.model"
    settings = reader.json("tokenizer_config.json", optional=True)
    specials = {str(text) for text in _texts(settings)} | {
        str(text) for text in _texts(reader.json("special_tokens_map.json", optional=True))
    }
    by_text = reader.json("added_tokens.json", optional=True)
    added = {id_: (text, text in specials) for text, id_ in by_text.items() if type(id_) is int}
    for key, token in (settings.get("added_tokens_decoder") or {}).items():
        if isinstance(token, dict) and re.fullmatch(r"\d{1,7}", key, re.ASCII):
            added[int(key)] = str(token.get("content")), token.get("special") is True
    metadata = vocabulary(path, reader.bytes(path.name, MAX_TOKENIZER_MODEL_BYTES), config.vocab_size, added)
    for key in ("add_bos_token", "add_eos_token"):
        if type(settings.get(key)) is bool:
            metadata[f"tokenizer.ggml.{key}"] = settings[key]
    return strict_json.dumps(tokenizer_json(path, metadata, config.vocab_size))


def _texts(settings: Mapping[str, Any]) -> Iterator[Any]:
    """The tokens that are named: ``"bos_token": "<s>"`` or ``"bos_token": {"content": "<s>"}``."""
    for key, value in settings.items():
        if key.endswith("_token"):
            yield value.get("content") if isinstance(value, dict) else value


def _chat_template(reader: SmallFiles) -> str | None:
    if (reader.directory / "chat_template.jinja").is_file():
        try:
            return reader.bytes("chat_template.jinja", MAX_TEXT_BYTES).decode()
        except UnicodeDecodeError as exc:
            raise CheckpointUnsupported(f"{reader.directory / 'chat_template.jinja'}: not UTF-8") from exc
    template = reader.json("tokenizer_config.json", optional=True).get("chat_template")
    if isinstance(template, list):  # several, by purpose
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointUnsupported(
            f"{reader.directory / 'tokenizer_config.json'}: chat_template is not a text"
        )
    return template
