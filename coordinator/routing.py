"""Which stages a request passes: a pure choice over what is ready.

A route covers ``[0, num_layers)`` exactly once. Fewest stages first, as each costs a hop per token; then the most free KV
cache at the tightest stage; then node ids, so that two runs agree. A stage computes all of its layers or none, so a route
passes it only where the stage before stops.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from mesh.layers import LayerRange


@dataclass(frozen=True, slots=True)
class RouteStage:
    node_id: str
    name: str
    host: str
    port: int
    layers: LayerRange
    incarnation: int


@dataclass(frozen=True, slots=True)
class Route:
    stages: tuple[RouteStage, ...]

    def __str__(self) -> str:
        return " → ".join(f"{stage.layers} {stage.name}" for stage in self.stages)


@dataclass(frozen=True, slots=True)
class ReadyStage:
    stage: RouteStage
    kv_tokens_free: int


def find_route(ready: Collection[ReadyStage], num_layers: int) -> Route | None:
    """The best route, or None if there is none; ``missing_layers`` then says what is lacking."""
    # best[stop] = the best way to cover [0, stop): (stages used, -tightest KV, node ids), stages
    best: dict[int, tuple[tuple[int, float, tuple[str, ...]], tuple[RouteStage, ...]]] = {
        0: ((0, float("-inf"), ()), ())
    }
    for entry in sorted(ready, key=lambda e: (e.stage.layers.start, e.stage.layers.stop, e.stage.node_id)):
        before = best.get(entry.stage.layers.start)
        if before is None:
            continue
        (count, tightest, ids), stages = before
        score = (count + 1, max(tightest, -entry.kv_tokens_free), (*ids, entry.stage.node_id))
        stop = entry.stage.layers.stop
        if stop not in best or score < best[stop][0]:
            best[stop] = (score, (*stages, entry.stage))
    found = best.get(num_layers)
    return Route(found[1]) if found is not None else None


def missing_layers(served: Iterable[LayerRange], num_layers: int) -> tuple[LayerRange, ...]:
    """The fewest layers, as the fewest ranges, that must be served in addition before a route exists; in order.

    Where nothing overlaps these are the layers that nobody serves. Stages that overlap without a common border (``0:6`` and
    ``4:10``) serve every layer and still make no route: then it is the range that would connect them.
    """
    ranges = set(served)
    borders = sorted(
        {0, num_layers, *(border for layers in ranges for border in (layers.start, layers.stop))}
    )
    # best[border] = (layers lacking before it, ranges lacking, those ranges)
    best: dict[int, tuple[int, int, tuple[LayerRange, ...]]] = {0: (0, 0, ())}
    for index, stop in enumerate(borders[1:], start=1):
        choices = []
        for start in borders[:index]:
            layers, (lacking, count, gaps) = LayerRange(start, stop), best[start]
            if layers in ranges:
                choices.append((lacking, count, gaps))
            else:
                choices.append((lacking + len(layers), count + 1, (*gaps, layers)))
        best[stop] = min(choices)
    return best[num_layers][2]


def count_coverage(ranges: Iterable[LayerRange], num_layers: int) -> list[int]:
    """How many of the ranges hold each layer: [num_layers]."""
    coverage = [0] * num_layers
    for layers in ranges:
        for layer in layers:
            coverage[layer] += 1
    return coverage
