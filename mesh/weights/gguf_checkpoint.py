"""Import of a GGUF file of architecture ``llama``: names mapped, q and k rows reordered, blocks kept bit for bit.

Follows llama.cpp's ``convert_hf_to_gguf.py`` (class LlamaModel) read backwards, and ``src/llama-model.cpp`` for the
meaning and the defaults of the metadata.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mesh import strict_json
from mesh.architecture import LlamaConfig, RopeConfig
from mesh.errors import CheckpointUnsupported
from mesh.weights.checkpoint import Checkpoint, file_chunks, release_name
from mesh.weights.gguf_file import GgufFile, GgufTensor, read_gguf
from mesh.weights.gguf_tokenizer import tokenizer_json
from mesh.weights.layout import tensor_shapes, weight_places
from mesh.weights.rope_layout import rows_to_half
from mesh.weights.shard import TensorSource
from mesh.weights.tensor_types import WEIGHT_TYPES, num_bytes, row_bytes

_NAMES = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_REORDERED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight")
_ROPE_FREQS = "rope_freqs.weight"

# The stretched models that exist: Llama 3.1 and 3.3 divide by 8, Llama 3.2 by 32; the rest is common to them.
_LLAMA3_FACTORS = (8.0, 32.0)
_ROPE_TOLERANCE = 1e-5  # the factors are stored as float32


def open_gguf(path: Path) -> Checkpoint:
    """Raises CheckpointUnsupported, naming what this version cannot run."""
    file = read_gguf(path)
    config = _Metadata(file).config()
    sources, used = {}, set()
    for role, layer in weight_places(config):
        prefix = "" if layer is None else f"blk.{layer}."
        shapes = tensor_shapes(config, role)
        sources[role, layer] = tuple(
            _source(file, config, name, prefix + _NAMES[name], shape) for name, shape in shapes.items()
        )
        used |= {prefix + _NAMES[name] for name in shapes}
    if unknown := sorted(file.tensors.keys() - used - {_ROPE_FREQS}):
        raise CheckpointUnsupported(
            f"{path}: tensor {unknown[0]!r} has no place in a LLaMA of {config.num_layers} layers"
        )
    aux_files = {"tokenizer.json": strict_json.dumps(tokenizer_json(path, file.metadata, config.vocab_size))}
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        aux_files["chat_template.jinja"] = template.encode()
    return Checkpoint(
        name=release_name(path.stem),
        config=config,
        shards=sources,
        aux_files=aux_files,
        license_text=None,
        source=path,
        source_files=(path,),
    )


def _source(
    file: GgufFile, config: LlamaConfig, name: str, gguf_name: str, shape: tuple[int, ...]
) -> TensorSource:
    tensor = _tensor(file, gguf_name)
    if tensor.type not in WEIGHT_TYPES:
        raise CheckpointUnsupported(
            f"{file.path}: tensor {gguf_name} is {tensor.type}; supported: {', '.join(WEIGHT_TYPES)}"
        )
    if tensor.shape != shape:
        raise CheckpointUnsupported(
            f"{file.path}: tensor {gguf_name} is {list(tensor.shape)}, its metadata implies {list(shape)}"
        )
    try:
        nbytes, bytes_per_row = num_bytes(tensor.type, shape), row_bytes(tensor.type, shape[-1])
    except ValueError as exc:
        raise CheckpointUnsupported(f"{file.path}: tensor {gguf_name}: {exc}") from exc
    if name in _REORDERED:
        return TensorSource(
            name,
            tensor.type,
            shape,
            lambda: rows_to_half(
                file_chunks(file.path, tensor.offset, nbytes), config.head_dim, bytes_per_row
            ),
        )
    return TensorSource(name, tensor.type, shape, lambda: file_chunks(file.path, tensor.offset, nbytes))


def _tensor(file: GgufFile, name: str) -> GgufTensor:
    if name not in file.tensors:
        raise CheckpointUnsupported(f"{file.path}: tensor {name} is missing")
    return file.tensors[name]


class _Metadata:
    """The metadata of one file, read as the model's config."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._values: Mapping[str, Any] = file.metadata
        if (architecture := self._values.get("general.architecture")) != "llama":
            raise self._refuse(f"architecture {architecture!r} is not supported; supported: 'llama'")
        if (parts := self._integer("split.count", default=1)) > 1:
            raise self._refuse(f"one of {parts} parts; join them with: llama-gguf-split --merge")

    def config(self) -> LlamaConfig:
        if experts := self._integer("llama.expert_count", default=0):
            raise self._refuse(f"a mixture of {experts} experts is not supported")
        hidden_size = self._integer("llama.embedding_length")
        num_heads = self._same_everywhere("llama.attention.head_count")
        num_kv_heads = self._same_everywhere("llama.attention.head_count_kv", default=num_heads)
        rope_dims = self._integer("llama.rope.dimension_count", default=0)
        if num_heads < 1 or (hidden_size % num_heads and not rope_dims):
            raise self._refuse(f"{num_heads} heads do not divide a hidden size of {hidden_size}")
        head_dim = self._integer("llama.attention.key_length", default=rope_dims or hidden_size // num_heads)
        if rope_dims not in (0, head_dim):
            raise self._refuse(f"RoPE over {rope_dims} of {head_dim} dimensions of a head is not supported")
        if (value_length := self._integer("llama.attention.value_length", default=head_dim)) != head_dim:
            raise self._refuse(
                f"values of {value_length} dimensions beside keys of {head_dim} are not supported"
            )
        vocab_size = _tensor(self._file, "token_embd.weight").shape[0]
        if (stated := self._integer("llama.vocab_size", default=vocab_size)) != vocab_size:
            raise self._refuse(f"metadata says {stated} tokens, token_embd.weight has {vocab_size}")
        return LlamaConfig(
            hidden_size=hidden_size,
            intermediate_size=self._same_everywhere("llama.feed_forward_length"),
            num_layers=self._integer("llama.block_count"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=vocab_size,
            context_length=self._integer("llama.context_length"),
            rms_norm_eps=self._number("llama.attention.layer_norm_rms_epsilon"),
            rope=self._rope(head_dim),
            tied="output.weight" not in self._file.tensors,
            bos_token_id=self._values.get("tokenizer.ggml.bos_token_id"),
            eos_token_ids=self._eos_token_ids(),
        )

    def _rope(self, head_dim: int) -> RopeConfig:
        theta = self._number("llama.rope.freq_base", default=10000.0)
        kind = self._values.get("llama.rope.scaling.type", "linear")  # llama.cpp's default
        factor = self._number(
            "llama.rope.scaling.factor", default=self._number("llama.rope.scale_linear", default=0.0)
        )
        if kind not in ("none", "linear"):
            raise self._refuse(f"RoPE scaling {kind!r} is not supported; supported: none, linear, llama3")
        if self._number("llama.rope.scaling.attn_factor", default=1.0) != 1.0:
            raise self._refuse("RoPE scaling with an attention factor is not supported")
        is_linear = kind == "linear" and factor not in (0.0, 1.0)
        if _ROPE_FREQS not in self._file.tensors:
            return (
                RopeConfig(theta=theta, kind="linear", factor=factor)
                if is_linear
                else RopeConfig(theta=theta)
            )
        if is_linear:
            raise self._refuse(f"{_ROPE_FREQS} beside linear RoPE scaling is not supported")
        return self._recognised_rope(theta, head_dim)

    def _recognised_rope(self, theta: float, head_dim: int) -> RopeConfig:
        """The factors are all that GGUF keeps of a llama3 scaling; find the parameters that made them."""
        tensor = self._file.tensors[_ROPE_FREQS]
        if tensor.type != "F32" or tensor.shape != (head_dim // 2,):
            raise self._refuse(
                f"{_ROPE_FREQS} is {tensor.type} {list(tensor.shape)}, expected F32 [{head_dim // 2}]"
            )
        data = b"".join(file_chunks(self._file.path, tensor.offset, 4 * (head_dim // 2)))
        stored = struct.unpack(f"<{head_dim // 2}f", data)
        candidates = [RopeConfig(theta=theta)]
        candidates += [RopeConfig(theta=theta, kind="llama3", factor=factor) for factor in _LLAMA3_FACTORS]
        for rope in candidates:
            made = llama3_factors(rope, head_dim)
            if all(math.isclose(a, b, rel_tol=_ROPE_TOLERANCE) for a, b in zip(stored, made, strict=True)):
                return rope
        raise self._refuse(
            f"{_ROPE_FREQS} is not the llama3 RoPE scaling by 8 or by 32; other factors are not supported"
        )

    def _eos_token_ids(self) -> tuple[int, ...]:
        keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
        # eom ends a message that calls a tool: also a place to stop.
        return tuple(sorted({self._integer(key) for key in keys if key in self._values}))

    def _integer(self, key: str, default: int | None = None) -> int:
        value = self._values.get(key, default)
        if type(value) is not int:
            raise self._refuse(f"metadata {key} is {'missing' if value is None else repr(value)[:80]}")
        return value

    def _number(self, key: str, default: float | None = None) -> float:
        value = self._values.get(key, default)
        if type(value) is not float:
            raise self._refuse(f"metadata {key} is {'missing' if value is None else repr(value)[:80]}")
        return _shortest(value)

    def _same_everywhere(self, key: str, default: int | None = None) -> int:
        """An integer that may be given once or once per layer."""
        values = self._values.get(key)
        if not isinstance(values, list):
            return self._integer(key, default)
        if len(set(values)) != 1:
            raise self._refuse(f"metadata {key} differs between layers, which is not supported")
        return int(values[0])

    def _refuse(self, what: str) -> CheckpointUnsupported:
        return CheckpointUnsupported(f"{self._file.path}: {what}")


def llama3_factors(rope: RopeConfig, head_dim: int) -> tuple[float, ...]:
    """What each frequency is divided by (Llama 3.1's ``apply_scaling``); ones for a plain RoPE."""
    if rope.kind != "llama3":
        return (1.0,) * (head_dim // 2)
    low_wavelength = rope.original_context_length / rope.low_freq_factor
    high_wavelength = rope.original_context_length / rope.high_freq_factor
    factors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope.theta ** (index / head_dim)
        if wavelength < high_wavelength:
            factors.append(1.0)
        elif wavelength > low_wavelength:
            factors.append(rope.factor)
        else:
            smooth = (rope.original_context_length / wavelength - rope.low_freq_factor) / (
                rope.high_freq_factor - rope.low_freq_factor
            )
            factors.append(1 / ((1 - smooth) / rope.factor + smooth))
    return tuple(factors)


def _shortest(value: float) -> float:
    """The shortest decimal that names the same float32: GGUF's 9.999999747378752e-06 was written as 1e-05."""
    if not abs(value) < 1e38:  # rounding up near the end of float32 would leave it
        return value
    for digits in range(1, 9):
        candidate = float(f"{value:.{digits}g}")
        if struct.pack("<f", candidate) == struct.pack("<f", value):
            return candidate
    return value
