"""Which tensors each shard of a model holds, and their shapes: the contract between importers and the model.

A pure function of the config. Names are Hugging Face's, relative to the shard, so that equal layers are equal files.
"""

from __future__ import annotations

from collections.abc import Iterator

from mesh.architecture import LlamaConfig

Place = tuple[str, int | None]  # role and layer


def weight_places(config: LlamaConfig) -> Iterator[Place]:
    """Every shard that holds weights, in the manifest's order."""
    yield "embed", None
    for layer in range(config.num_layers):
        yield "layer", layer
    yield "head", None


def tensor_shapes(config: LlamaConfig, role: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name, row-major: a matrix is (outputs, inputs)."""
    d, f = config.hidden_size, config.intermediate_size
    if role == "embed":
        return {"embed_tokens.weight": (config.vocab_size, d)}
    if role == "head":
        untied = {} if config.tied else {"lm_head.weight": (config.vocab_size, d)}
        return {"norm.weight": (d,), **untied}
    assert role == "layer", role
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (d,),
        "self_attn.q_proj.weight": (config.q_size, d),
        "self_attn.k_proj.weight": (config.kv_size, d),
        "self_attn.v_proj.weight": (config.kv_size, d),
        "self_attn.o_proj.weight": (d, config.q_size),
        "post_attention_layernorm.weight": (d,),
        "mlp.gate_proj.weight": (f, d),
        "mlp.up_proj.weight": (f, d),
        "mlp.down_proj.weight": (d, f),
    }
    biased = (
        *(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj") if config.qkv_bias else ()),
        *(("self_attn.o_proj",) if config.output_bias else ()),
        *(("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj") if config.mlp_bias else ()),
    )
    shapes |= {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in biased}
    if config.qk_norm:
        shapes |= {f"self_attn.{side}_norm.weight": (config.head_dim,) for side in ("q", "k")}
    return shapes
