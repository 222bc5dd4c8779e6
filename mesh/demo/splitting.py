"""How N nodes share a model so that each holds a part: pure arithmetic for a mesh on one machine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.architecture import LlamaConfig
from mesh.errors import UsageError
from mesh.layers import LayerRange
from mesh.model.memory import largest_range, plan_stage

_UNIT = 1 << 20  # memory is chosen to a MiB


@dataclass(frozen=True, slots=True)
class Share:
    """What one node is started with."""

    memory_bytes: int
    layers: LayerRange | None  # None: memory alone decides, as for any volunteer


def shares(config: LlamaConfig, num_nodes: int, kv_tokens: int) -> Sequence[Share]:
    """One share per node, such that ``num_nodes`` nodes that join one after the other hold one part each.

    Scarce memory does it where layers weigh something. A tiny model fits wherever a process fits; its layers are then
    dealt out evenly.
    """
    memory = memory_per_node(config, num_nodes, kv_tokens)
    if len(_stages(config, num_nodes, memory, kv_tokens)) == num_nodes:
        return [Share(memory, None)] * num_nodes
    borders = [config.num_layers * index // num_nodes for index in range(num_nodes + 1)]
    parts = [LayerRange(start, stop) for start, stop in itertools.pairwise(borders)]
    return [Share(plan_stage(config, part, kv_tokens).total_bytes, part) for part in parts]


def memory_per_node(config: LlamaConfig, num_nodes: int, kv_tokens: int) -> int:
    """The least memory in bytes (to a MiB) with which ``num_nodes`` equal nodes can hold the whole model."""
    if num_nodes > config.num_layers:
        raise UsageError(
            f"{num_nodes} nodes for a model of {config.num_layers} layers: each needs one layer at least"
        )
    enough = plan_stage(config, LayerRange(0, config.num_layers), kv_tokens).total_bytes // _UNIT + 1
    too_little = 0
    while enough - too_little > 1:
        middle = (enough + too_little) // 2
        if _stages(config, num_nodes, middle * _UNIT, kv_tokens):
            enough = middle
        else:
            too_little = middle
    return enough * _UNIT


def _stages(config: LlamaConfig, num_nodes: int, memory_bytes: int, kv_tokens: int) -> list[LayerRange]:
    """What at most ``num_nodes`` nodes take, each as much as fits; empty if they do not reach the last layer."""
    stages: list[LayerRange] = []
    start = 0
    while start < config.num_layers and len(stages) < num_nodes:
        taken = largest_range(config, start, config.num_layers, memory_bytes, kv_tokens)
        if taken is None:
            return []
        stages.append(taken)
        start = taken.stop
    return stages if start == config.num_layers else []
