"""How little memory per node still lets N equal nodes hold a model: pure arithmetic for the demo."""

from __future__ import annotations

from mesh.architecture import LlamaConfig
from mesh.errors import UsageError
from mesh.layers import LayerRange
from mesh.model.memory import largest_range, plan_stage


def covers(config: LlamaConfig, num_nodes: int, memory_bytes: int, kv_tokens: int) -> bool:
    """Whether ``num_nodes`` nodes of that memory, each taking as many layers as fit, reach the last layer."""
    start = 0
    for _ in range(num_nodes):
        taken = largest_range(config, start, config.num_layers, memory_bytes, kv_tokens)
        if taken is None:
            return False
        start = taken.stop
        if start == config.num_layers:
            return True
    return False


def memory_per_node(config: LlamaConfig, num_nodes: int, kv_tokens: int) -> int:
    """The least memory in bytes (to a MiB) with which ``num_nodes`` equal nodes can hold the whole model."""
    if num_nodes > config.num_layers:
        raise UsageError(
            f"{num_nodes} nodes for a model of {config.num_layers} layers: at least one layer each is needed"
        )
    unit = 1 << 20
    enough = plan_stage(config, LayerRange(0, config.num_layers), kv_tokens).total_bytes // unit + 1
    too_little = 0
    while enough - too_little > 1:
        middle = (enough + too_little) // 2
        if covers(config, num_nodes, middle * unit, kv_tokens):
            enough = middle
        else:
            too_little = middle
    return enough * unit
