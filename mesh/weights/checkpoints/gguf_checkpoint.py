"""Import of a GGUF file: names mapped, q and k rows of ``llama`` reordered, blocks kept bit for bit.

Knows which tensor goes where; what the metadata means is in ``gguf_config.py``.

Follows llama.cpp's ``convert_hf_to_gguf.py`` (classes LlamaModel, Qwen2Model, Qwen3Model) read backwards.
"""

from __future__ import annotations

from pathlib import Path

from mesh import strict_json
from mesh.architecture import LlamaConfig
from mesh.errors import CheckpointUnsupported
from mesh.weights.checkpoints.checkpoint import Checkpoint, release_name, tensor_in_file
from mesh.weights.checkpoints.gguf_config import ROPE_FREQS, find_tensor, gguf_config
from mesh.weights.checkpoints.gguf_file import GgufFile
from mesh.weights.checkpoints.gguf_parts import read_whole_gguf, whole_name
from mesh.weights.checkpoints.gguf_tokenizer import tokenizer_json
from mesh.weights.checkpoints.layout import tensor_shapes, weight_places
from mesh.weights.checkpoints.small_files import Terms
from mesh.weights.checkpoints.tensor_streams import in_half_order
from mesh.weights.shards.shard import TensorSource
from mesh.weights.shards.tensor_types import WEIGHT_TYPES

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
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.bias": "attn_output.bias",
    "mlp.gate_proj.bias": "ffn_gate.bias",
    "mlp.up_proj.bias": "ffn_up.bias",
    "mlp.down_proj.bias": "ffn_down.bias",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
}
# Of architecture ``llama`` alone: the converter leaves Qwen's rows in Hugging Face's order.
_REORDERED = tuple(f"self_attn.{side}_proj.{kind}" for side in ("q", "k") for kind in ("weight", "bias"))


def open_gguf(path: Path) -> Checkpoint:
    """A whole file, or any of its parts. Raises NotFound or CheckpointUnsupported, naming what this version cannot run."""
    file = read_whole_gguf(path)
    config = gguf_config(file)
    sources, used = {}, set()
    for role, layer in weight_places(config):
        prefix = "" if layer is None else f"blk.{layer}."
        shapes = tensor_shapes(config, role)
        sources[role, layer] = tuple(
            _source(file, config, name, prefix + _NAMES[name], shape) for name, shape in shapes.items()
        )
        used |= {prefix + _NAMES[name] for name in shapes}
    if unknown := sorted(file.tensors.keys() - used - {ROPE_FREQS}):
        raise CheckpointUnsupported(
            f"{path}: tensor {unknown[0]!r} has no place in a LLaMA of {config.num_layers} layers"
        )
    aux_files = {"tokenizer.json": strict_json.dumps(tokenizer_json(path, file.metadata, config.vocab_size))}
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        aux_files["chat_template.jinja"] = template.encode()
    return Checkpoint(
        name=release_name(whole_name(path)),
        config=config,
        shards=sources,
        aux_files=aux_files,
        terms=Terms(),
        source=path,
        source_files=file.parts,
    )


def _source(
    file: GgufFile, config: LlamaConfig, name: str, gguf_name: str, shape: tuple[int, ...]
) -> TensorSource:
    tensor = find_tensor(file, gguf_name)
    if tensor.type not in WEIGHT_TYPES:
        raise CheckpointUnsupported(
            f"{file.path}: tensor {gguf_name} is {tensor.type}; supported: {', '.join(WEIGHT_TYPES)}"
        )
    if tensor.shape != shape:
        raise CheckpointUnsupported(
            f"{file.path}: tensor {gguf_name} is {list(tensor.shape)}, its metadata implies {list(shape)}"
        )
    try:
        source = tensor_in_file(name, tensor.type, shape, tensor.path, tensor.offset)
    except ValueError as exc:
        raise CheckpointUnsupported(f"{file.path}: tensor {gguf_name}: {exc}") from exc
    if name in _REORDERED and file.metadata["general.architecture"] == "llama":
        return in_half_order(source, config.head_dim)
    return source
