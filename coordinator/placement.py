"""Which layers a newcomer is offered: a pure choice over what is already reserved.

First complete the model, then make it wide. What is lacking is filled from its first layer on, as far as the newcomer's
memory goes, so that equal nodes arriving one after the other cover a model without planning ahead. Once nothing is
lacking, a newcomer doubles the layers that are served least, between borders at which routes can pass. Same input, same
offer.

Knows layer ranges and bytes of memory. Knows nothing of nodes, leases or time. The rule for a complete model follows
Petals' ``choose_best_blocks`` (Borzunov et al. 2023, arXiv 2312.08361): the window that is served worst.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coordinator.routing import count_coverage, missing_layers
from mesh.architecture import LlamaConfig
from mesh.errors import MeshError, NotEnoughMemory, UsageError
from mesh.layers import LayerRange
from mesh.model.memory import largest_range, plan_stage
from mesh.sizes import format_size


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a volunteer gives."""

    memory_bytes: int  # for the whole process
    kv_tokens: int  # of KV cache that it must hold beside the weights
    layers: LayerRange | None = None  # what the volunteer insists on; None: any


@dataclass(frozen=True, slots=True)
class Candidate:
    """A release that a newcomer could serve, and the ranges that others serve of it or are about to."""

    config: LlamaConfig
    reserved: Sequence[LayerRange]


def choose_release(candidates: Sequence[Candidate], capacity: Capacity) -> tuple[int, LayerRange]:
    """Which of them to offer, and which of its layers: the first that lacks some, else the one that is served least.

    Raises what ``propose`` raises of the last candidate if nothing of any of them fits.
    """
    best: tuple[tuple[int, int], LayerRange] | None = None
    failure: MeshError | None = None
    for index, candidate in enumerate(candidates):
        try:
            layers = propose(candidate.config, candidate.reserved, capacity)
        except (NotEnoughMemory, UsageError) as exc:
            failure = exc
            continue
        lacks = bool(missing_layers(candidate.reserved, candidate.config.num_layers))
        depth = min(count_coverage(candidate.reserved, candidate.config.num_layers), default=0)
        score = (-1 if lacks else depth, index)
        if best is None or score < best[0]:
            best = score, layers
    if best is None:
        assert failure is not None, "no candidate"
        raise failure
    return best[0][1], best[1]


def propose(config: LlamaConfig, reserved: Sequence[LayerRange], capacity: Capacity) -> LayerRange:
    """The layers to offer, where ``reserved`` are the ranges that others serve or are about to.

    Raises NotEnoughMemory if no layer fits, or not all that the volunteer insists on; UsageError if those are not of
    this model.
    """
    if capacity.layers is not None:
        return _insisted(config, capacity.layers, capacity)
    proposal = (
        _in_a_gap(config, reserved, capacity)
        or _between_borders(config, reserved, capacity)
        or _anywhere(config, reserved, capacity)
    )
    if proposal is None:
        raise _too_small("one layer of this model needs", config, _smallest(config, capacity), capacity)
    return proposal


def _insisted(config: LlamaConfig, layers: LayerRange, capacity: Capacity) -> LayerRange:
    if layers.stop > config.num_layers:
        raise UsageError(f"--layers {layers}: the model has layers 0:{config.num_layers}")
    if not _fits(config, layers, capacity):
        raise _too_small(f"layers {layers} need", config, layers, capacity)
    return layers


def _in_a_gap(config: LlamaConfig, reserved: Sequence[LayerRange], capacity: Capacity) -> LayerRange | None:
    """As much of the first gap as fits, from its start; further in where the start alone is too much for this node
    (the embedding may be larger than many layers), which leaves it to a larger one."""
    starts = ((start, gap.stop) for gap in missing_layers(reserved, config.num_layers) for start in gap)
    return _first(_largest(config, start, stop, capacity) for start, stop in starts)


def _between_borders(
    config: LlamaConfig, reserved: Sequence[LayerRange], capacity: Capacity
) -> LayerRange | None:
    """The least served window that begins and ends where stages do, so that it is of use at once; then the longest
    one, as each stage costs a hop; then the first."""
    borders = sorted({border for layers in reserved for border in (layers.start, layers.stop)})
    windows = (LayerRange(a, b) for index, a in enumerate(borders) for b in borders[index + 1 :])
    coverage = count_coverage(reserved, config.num_layers)
    return min(
        (layers for layers in windows if _fits(config, layers, capacity)),
        key=lambda layers: (min(_within(coverage, layers)), -len(layers), _within(coverage, layers), layers),
        default=None,
    )


def _anywhere(config: LlamaConfig, reserved: Sequence[LayerRange], capacity: Capacity) -> LayerRange | None:
    """A node smaller than every stage: the least served of the largest windows that fit. Others will join it."""
    num_layers = config.num_layers
    longest = [
        found for start in range(num_layers) if (found := _largest(config, start, num_layers, capacity))
    ]
    size = max(map(len, longest), default=0)
    coverage = count_coverage(reserved, num_layers)
    return min(
        (layers for layers in longest if len(layers) == size),
        key=lambda layers: (_within(coverage, layers), layers),
        default=None,
    )


def _within(coverage: Sequence[int], layers: LayerRange) -> list[int]:
    """Coverage of the layers, thinnest first: two windows compare by their worst layer, then the next."""
    return sorted(coverage[layers.start : layers.stop])


def _fits(config: LlamaConfig, layers: LayerRange, capacity: Capacity) -> bool:
    return plan_stage(config, layers, capacity.kv_tokens).total_bytes <= capacity.memory_bytes


def _largest(config: LlamaConfig, start: int, stop: int, capacity: Capacity) -> LayerRange | None:
    return largest_range(config, start, stop, capacity.memory_bytes, capacity.kv_tokens)


def _first(choices: Iterator[LayerRange | None]) -> LayerRange | None:
    return next((layers for layers in choices if layers is not None), None)


def _smallest(config: LlamaConfig, capacity: Capacity) -> LayerRange:
    """The single layer that takes the least: one in the middle where there is one."""
    return min(
        (LayerRange(layer, layer + 1) for layer in range(config.num_layers)),
        key=lambda layers: plan_stage(config, layers, capacity.kv_tokens).total_bytes,
    )


def _too_small(what: str, config: LlamaConfig, layers: LayerRange, capacity: Capacity) -> NotEnoughMemory:
    plan = plan_stage(config, layers, capacity.kv_tokens)
    fewer = ", or ask for fewer --layers" if len(layers) > 1 else ""
    return NotEnoughMemory(
        f"{what} {format_size(plan.total_bytes)} of memory "
        f"(weights {format_size(plan.weight_bytes)}, KV cache for {capacity.kv_tokens} tokens "
        f"{format_size(plan.kv_bytes)}, workspace {format_size(plan.workspace_bytes)}, "
        f"the process itself {format_size(plan.runtime_bytes)}), this node has "
        f"{format_size(capacity.memory_bytes)}; raise --memory or lower --kv-tokens{fewer}"
    )
