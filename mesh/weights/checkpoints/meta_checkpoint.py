"""Import of Meta's original files: ``consolidated.NN.pth``, ``params.json``, ``tokenizer.model``.

Each file is the slice of one rank of a model-parallel group. Slices are joined while they stream, q and k move from Meta's
RoPE order to the canonical one, and what every rank has (norms) must be the same in all. The pickles are read by
``pickle_file.py``, so nothing in them runs.

Follows ``llama/model.py`` of meta-llama/llama and meta-llama/llama3 for what is cut along which dimension, and
transformers' ``convert_llama_weights_to_hf.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mesh import strict_json
from mesh.architecture import LlamaConfig, RopeConfig
from mesh.errors import CheckpointUnsupported
from mesh.weights.checkpoints.checkpoint import Checkpoint, release_name
from mesh.weights.checkpoints.gguf_tokenizer import tokenizer_json
from mesh.weights.checkpoints.layout import Place, tensor_shapes, weight_places
from mesh.weights.checkpoints.pickle_file import read_pickle
from mesh.weights.checkpoints.small_files import SmallFiles
from mesh.weights.checkpoints.tensor_streams import in_half_order, join_columns, join_rows, same
from mesh.weights.checkpoints.tokenizer_model import MAX_TOKENIZER_MODEL_BYTES, vocabulary
from mesh.weights.shards.shard import TensorSource

RANKS = (1, 2, 4, 8)
_DTYPES = ("F32", "F16", "BF16")
_FILE = re.compile(r"consolidated\.(\d\d)\.pth")

_Join = Callable[[Sequence[TensorSource]], TensorSource]


# Canonical name to Meta's, and how the ranks' slices become one.
_LAYER: Mapping[str, tuple[str, _Join]] = {
    "input_layernorm.weight": ("attention_norm.weight", same),
    "self_attn.q_proj.weight": ("attention.wq.weight", join_rows),
    "self_attn.k_proj.weight": ("attention.wk.weight", join_rows),
    "self_attn.v_proj.weight": ("attention.wv.weight", join_rows),
    "self_attn.o_proj.weight": ("attention.wo.weight", join_columns),
    "post_attention_layernorm.weight": ("ffn_norm.weight", same),
    "mlp.gate_proj.weight": ("feed_forward.w1.weight", join_rows),
    "mlp.down_proj.weight": ("feed_forward.w2.weight", join_columns),
    "mlp.up_proj.weight": ("feed_forward.w3.weight", join_rows),
}
_EMBEDDING = "tok_embeddings.weight"
_HEAD: Mapping[str, tuple[str, _Join]] = {
    "norm.weight": ("norm.weight", same),
    "lm_head.weight": ("output.weight", join_rows),
}
_INTERLEAVED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight")


def is_meta(directory: Path) -> bool:
    return any(_FILE.fullmatch(path.name) for path in directory.iterdir())


def open_meta(directory: Path) -> Checkpoint:
    """Raises NotFound for a missing file, CheckpointUnsupported for one this version cannot use."""
    paths = _rank_files(directory)
    files = SmallFiles(directory, "a directory of Meta's original files")
    params = _Params(files.path("params.json"), files.json("params.json"))
    ranks = [read_pickle(path) for path in paths]
    tensors = _Ranks(paths, ranks)
    vocab_size, embedding = tensors.embedding(params.integer("dim"))

    # LLaMA 1 was handed out with one tokenizer.model above the directories of its sizes.
    where = (
        files
        if files.path("tokenizer.model").is_file()
        else SmallFiles(directory.resolve().parent, files.kind)
    )
    model_path = where.path("tokenizer.model")
    metadata = vocabulary(model_path, where.bytes(model_path.name, MAX_TOKENIZER_MODEL_BYTES), vocab_size)
    config = params.config(vocab_size, "output.weight" not in ranks[0], metadata)

    sources: dict[Place, tuple[TensorSource, ...]] = {}
    used = {_EMBEDDING}
    for role, layer in weight_places(config):
        made = []
        for name, shape in tensor_shapes(config, role).items():
            if role == "embed":
                made.append(tensors.joined(_EMBEDDING, embedding, name, shape))
                continue
            meta_name, join = _HEAD[name] if layer is None else _LAYER[name]
            meta_name = meta_name if layer is None else f"layers.{layer}.{meta_name}"
            used.add(meta_name)
            source = tensors.joined(meta_name, join, name, shape)
            made.append(in_half_order(source, config.head_dim) if name in _INTERLEAVED else source)
        sources[role, layer] = tuple(made)
    tensors.check_all_used(used, config.num_layers)
    return Checkpoint(
        name=release_name(directory.resolve().name),
        config=config,
        shards=sources,
        aux_files={"tokenizer.json": strict_json.dumps(tokenizer_json(model_path, metadata, vocab_size))},
        terms=files.terms(),
        source=directory,
        source_files=(*paths, *files.read, *(where.read if where is not files else ())),
    )


def _rank_files(directory: Path) -> list[Path]:
    paths = sorted(path for path in directory.iterdir() if _FILE.fullmatch(path.name))
    for rank, path in enumerate(paths):
        if path.name != f"consolidated.{rank:02d}.pth":
            raise CheckpointUnsupported(
                f"{directory}: consolidated.{rank:02d}.pth is missing beside {path.name}"
            )
    if len(paths) not in RANKS:
        raise CheckpointUnsupported(
            f"{directory}: {len(paths)} consolidated files; models of 1, 2, 4 or 8 are supported. Is one missing?"
        )
    return paths


class _Ranks:
    """The slices of all ranks, joined by name."""

    def __init__(self, paths: Sequence[Path], ranks: Sequence[Mapping[str, TensorSource]]) -> None:
        self._paths, self._ranks = paths, ranks

    def embedding(self, dim: int) -> tuple[int, _Join]:
        """Tokens, and how the slices join: LLaMA 1 and 2 cut the embedding along the hidden size, Llama 3 along tokens."""
        first = self._slices(_EMBEDDING)[0]
        if len(first.shape) == 2 and first.shape[1] == dim:
            return first.shape[0] * len(self._ranks), join_rows
        return first.shape[0], join_columns

    def joined(self, meta_name: str, join: _Join, name: str, shape: tuple[int, ...]) -> TensorSource:
        parts = self._slices(meta_name)
        for path, part in zip(self._paths, parts, strict=True):
            if part.type not in _DTYPES or part.type != parts[0].type:
                raise CheckpointUnsupported(
                    f"{path}: tensor {meta_name} is {part.type}; supported: {', '.join(_DTYPES)}, the same in every file"
                )
            if len(part.shape) != len(shape) or part.shape != parts[0].shape:
                raise CheckpointUnsupported(
                    f"{path}: tensor {meta_name} is {list(part.shape)}, unlike in {self._paths[0].name}"
                )
        try:
            whole = join(parts)
        except ValueError as exc:
            raise CheckpointUnsupported(f"{self._paths[0].parent}: {exc}") from exc
        if whole.shape != shape:
            raise CheckpointUnsupported(
                f"{self._paths[0].parent}: tensor {meta_name} of {len(parts)} files is {list(whole.shape)}, "
                f"params.json implies {list(shape)}"
            )
        return replace(whole, name=name)

    def check_all_used(self, used: set[str], num_layers: int) -> None:
        for path, rank in zip(self._paths, self._ranks, strict=True):
            ignored = {"rope.freqs"} | {name for name in rank if name.endswith(".rotary_emb.inv_freq")}
            ignored |= {name for name in rank if name.endswith(".inner_attention.rope.freqs")}
            if unknown := sorted(rank.keys() - used - ignored):
                raise CheckpointUnsupported(
                    f"{path}: tensor {unknown[0]!r} has no place in a LLaMA of {num_layers} layers"
                )

    def _slices(self, meta_name: str) -> list[TensorSource]:
        for path, rank in zip(self._paths, self._ranks, strict=True):
            if meta_name not in rank:
                raise CheckpointUnsupported(f"{path}: tensor {meta_name} is missing")
        return [rank[meta_name] for rank in self._ranks]


class _Params:
    """``params.json``, read as the model's config."""

    _KNOWN = frozenset({
        "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps",
        "rope_theta", "use_scaled_rope", "rope_scaling_factor", "max_batch_size", "max_seq_len",
    })  # fmt: skip

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self._path, self._values = path, values
        if unknown := sorted(key for key in values.keys() - self._KNOWN if values[key] not in (None, False)):
            raise self._refuse(
                f"{unknown[0]} is not supported (vision, experts, quantization and LoRA are not)"
            )

    def config(self, vocab_size: int, tied: bool, vocabulary: Mapping[str, Any]) -> LlamaConfig:
        dim, num_heads = self.integer("dim"), self.integer("n_heads")
        if num_heads < 1 or dim % num_heads:
            raise self._refuse(f"{num_heads} heads do not divide a hidden size of {dim}")
        if (stated := self.integer("vocab_size", -1)) not in (-1, vocab_size):
            raise self._refuse(f"{stated} tokens, the embedding has {vocab_size}")
        is_llama3 = vocabulary["tokenizer.ggml.model"] == "gpt2"
        bos, eos = (vocabulary.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
        # Llama 3 ends a turn with <|eot_id|> and a message that calls a tool with <|eom_id|>.
        eos_ids = () if eos is None else (eos, bos + 8, bos + 9) if is_llama3 and bos is not None else (eos,)
        return LlamaConfig(
            hidden_size=dim,
            intermediate_size=self._intermediate_size(dim),
            num_layers=self.integer("n_layers"),
            num_heads=num_heads,
            num_kv_heads=self.integer("n_kv_heads", num_heads),
            head_dim=dim // num_heads,
            vocab_size=vocab_size,
            context_length=self._context_length(is_llama3),
            rms_norm_eps=self._number("norm_eps", 1e-5),
            rope=self._rope(),
            tied=tied,
            bos_token_id=bos,
            eos_token_ids=eos_ids,
        )

    def _intermediate_size(self, dim: int) -> int:
        """``FeedForward.__init__``: two thirds of four times, times the multiplier, up to a multiple."""
        size = int(int(2 * (4 * dim) / 3) * self._number("ffn_dim_multiplier", 1.0))
        multiple = self.integer("multiple_of", 256)
        if multiple < 1:
            raise self._refuse(f"multiple_of is {multiple}")
        return -(-size // multiple) * multiple

    def _context_length(self, is_llama3: bool) -> int:
        """Nothing in the files says it; each generation is known by what it alone has, as in llama.cpp's converter."""
        if self._values.get("use_scaled_rope"):
            return 131072  # Llama 3.1 and later
        if is_llama3:
            return 8192
        if self._number("rope_theta", 1e4) == 1e6:
            return 16384  # CodeLlama
        return 4096 if self._number("norm_eps", 1e-5) == 1e-5 else 2048  # Llama 2; LLaMA 1 has 1e-6

    def _rope(self) -> RopeConfig:
        theta = self._number("rope_theta", 10000.0)
        if not self._values.get("use_scaled_rope"):
            return RopeConfig(theta=theta)
        # The two Llama 3.2 text models stretch by 32 and do not say so either; they are known by their depth.
        default = 32.0 if self.integer("n_layers") in (16, 28) else 8.0
        return RopeConfig(theta=theta, kind="llama3", factor=self._number("rope_scaling_factor", default))

    def integer(self, key: str, default: int | None = None) -> int:
        value = default if self._values.get(key) is None else self._values[key]
        if type(value) is not int:
            raise self._refuse(f"{key} is {'missing' if value is None else str(value)[:80]}")
        return value

    def _number(self, key: str, default: float) -> float:
        value = default if self._values.get(key) is None else self._values[key]
        if type(value) not in (int, float):
            raise self._refuse(f"{key} is {str(value)[:80]}")
        return float(value)

    def _refuse(self, what: str) -> CheckpointUnsupported:
        return CheckpointUnsupported(f"{self._path}: {what}")
