"""The metadata of a GGUF file read as a LlamaConfig, or refused by name.

Follows llama.cpp's ``src/llama-model.cpp`` for the meaning and the defaults of the keys, and its
``convert_hf_to_gguf.py`` for what a RoPE scaling becomes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from mesh.architecture import LlamaConfig, RopeConfig
from mesh.errors import CheckpointUnsupported
from mesh.weights.checkpoints.checkpoint import file_chunks
from mesh.weights.checkpoints.gguf_file import GgufFile, GgufTensor

ARCHITECTURES = ("llama", "qwen2", "qwen3")
ROPE_FREQS = "rope_freqs.weight"

# The stretched models that exist: Llama 3.1 and 3.3 divide by 8, Llama 3.2 by 32; the rest is common to them.
_LLAMA3_FACTORS = (8.0, 32.0)
_ROPE_TOLERANCE = 1e-5  # the factors are stored as float32


def gguf_config(file: GgufFile) -> LlamaConfig:
    """Raises CheckpointUnsupported."""
    return _Metadata(file).config()


def find_tensor(file: GgufFile, name: str) -> GgufTensor:
    if name not in file.tensors:
        raise CheckpointUnsupported(f"{file.path}: tensor {name} is missing")
    return file.tensors[name]


class _Metadata:
    """The metadata of one file, read as the model's config."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._values: Mapping[str, Any] = file.metadata
        if self._values.get("general.type") == "adapter":
            raise self._refuse("a LoRA adapter, not a model; merge it with llama-export-lora and pack that")
        architecture = self._values.get("general.architecture")
        if architecture not in ARCHITECTURES:
            raise self._refuse(
                f"architecture {str(architecture)[:40]!r} is not supported; supported: {', '.join(ARCHITECTURES)}"
            )
        self._architecture: str = architecture

    def config(self) -> LlamaConfig:
        if experts := self._integer(self._key("expert_count"), default=0):
            raise self._refuse(f"a mixture of {experts} experts is not supported")
        hidden_size = self._integer(self._key("embedding_length"))
        num_heads = self._same_everywhere(self._key("attention.head_count"))
        num_kv_heads = self._same_everywhere(self._key("attention.head_count_kv"), default=num_heads)
        rope_dims = self._integer(self._key("rope.dimension_count"), default=0)
        if num_heads < 1 or (hidden_size % num_heads and not rope_dims):
            raise self._refuse(f"{num_heads} heads do not divide a hidden size of {hidden_size}")
        head_dim = self._integer(
            self._key("attention.key_length"), default=rope_dims or hidden_size // num_heads
        )
        if rope_dims not in (0, head_dim):
            raise self._refuse(f"RoPE over {rope_dims} of {head_dim} dimensions of a head is not supported")
        if (value_length := self._integer(self._key("attention.value_length"), default=head_dim)) != head_dim:
            raise self._refuse(
                f"values of {value_length} dimensions beside keys of {head_dim} are not supported"
            )
        vocab_size = find_tensor(self._file, "token_embd.weight").shape[0]
        if (stated := self._integer(self._key("vocab_size"), default=vocab_size)) != vocab_size:
            raise self._refuse(f"metadata says {stated} tokens, token_embd.weight has {vocab_size}")
        return LlamaConfig(
            hidden_size=hidden_size,
            intermediate_size=self._same_everywhere(self._key("feed_forward_length")),
            num_layers=self._integer(self._key("block_count")),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=vocab_size,
            context_length=self._integer(self._key("context_length")),
            rms_norm_eps=self._number(self._key("attention.layer_norm_rms_epsilon")),
            rope=self._rope(head_dim),
            tied="output.weight" not in self._file.tensors,
            bos_token_id=self._values.get("tokenizer.ggml.bos_token_id"),
            eos_token_ids=self._eos_token_ids(),
            qkv_bias=self._architecture == "qwen2" or self._has("attn_q.bias"),
            output_bias=self._has("attn_output.bias"),
            mlp_bias=self._has("ffn_down.bias"),
            qk_norm=self._architecture == "qwen3",
        )

    def _has(self, name: str) -> bool:
        """Whether the layers have the tensor; a layer that differs from the first is found out with its tensors."""
        return f"blk.0.{name}" in self._file.tensors

    def _rope(self, head_dim: int) -> RopeConfig:
        theta = self._number(self._key("rope.freq_base"), default=10000.0)
        kind = self._values.get(self._key("rope.scaling.type"), "linear")  # llama.cpp's default
        factor = self._number(
            self._key("rope.scaling.factor"),
            default=self._number(self._key("rope.scale_linear"), default=0.0),
        )
        if kind == "yarn" and ROPE_FREQS not in self._file.tensors:
            return self._yarn(theta, factor)
        if kind not in ("none", "linear"):
            raise self._refuse(
                f"RoPE scaling {kind!r} is not supported; supported: none, linear, llama3, yarn"
            )
        if self._number(self._key("rope.scaling.attn_factor"), default=1.0) != 1.0:
            raise self._refuse("RoPE scaling with an attention factor is not supported")
        is_linear = kind == "linear" and factor not in (0.0, 1.0)
        if ROPE_FREQS not in self._file.tensors:
            return (
                RopeConfig(theta=theta, kind="linear", factor=factor)
                if is_linear
                else RopeConfig(theta=theta)
            )
        if is_linear:
            raise self._refuse(f"{ROPE_FREQS} beside linear RoPE scaling is not supported")
        return self._recognised_rope(theta, head_dim)

    def _yarn(self, theta: float, factor: float) -> RopeConfig:
        """llama.cpp keeps neither a factor for attention nor other borders than YaRN's own, unless it says so."""
        for name in (
            "yarn_ext_factor",
            "yarn_attn_factor",
            "yarn_beta_fast",
            "yarn_beta_slow",
            "yarn_log_multiplier",
        ):
            if (key := self._key(f"rope.scaling.{name}")) in self._values:
                raise self._refuse(f"RoPE scaling 'yarn' with its own {key} is not supported")
        return RopeConfig(
            theta=theta,
            kind="yarn",
            factor=factor,
            original_context_length=self._integer(
                self._key("rope.scaling.original_context_length"), self._integer(self._key("context_length"))
            ),
            attention_factor=0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0,
        )

    def _recognised_rope(self, theta: float, head_dim: int) -> RopeConfig:
        """The factors are all that GGUF keeps of a llama3 scaling; find the parameters that made them."""
        tensor = self._file.tensors[ROPE_FREQS]
        if tensor.type != "F32" or tensor.shape != (head_dim // 2,):
            raise self._refuse(
                f"{ROPE_FREQS} is {tensor.type} {list(tensor.shape)}, expected F32 [{head_dim // 2}]"
            )
        data = b"".join(file_chunks(tensor.path, tensor.offset, 4 * (head_dim // 2)))
        stored = struct.unpack(f"<{head_dim // 2}f", data)
        candidates = [RopeConfig(theta=theta)]
        candidates += [RopeConfig(theta=theta, kind="llama3", factor=factor) for factor in _LLAMA3_FACTORS]
        for rope in candidates:
            made = llama3_factors(rope, head_dim)
            if all(math.isclose(a, b, rel_tol=_ROPE_TOLERANCE) for a, b in zip(stored, made, strict=True)):
                return rope
        raise self._refuse(
            f"{ROPE_FREQS} is not the llama3 RoPE scaling by 8 or by 32; other factors are not supported"
        )

    def _eos_token_ids(self) -> tuple[int, ...]:
        keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
        # eom ends a message that calls a tool: also a place to stop.
        return tuple(sorted({self._integer(key) for key in keys if key in self._values}))

    def _key(self, name: str) -> str:
        return f"{self._architecture}.{name}"

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
