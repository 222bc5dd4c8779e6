from itertools import combinations, permutations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.routing import (
    ReadyStage,
    Route,
    RouteStage,
    count_coverage,
    find_route,
    missing_layers,
)
from mesh.layers import LayerRange

NUM_LAYERS = 5


def ready(layers: str, name: str = "n", kv_tokens_free: int = 0) -> ReadyStage:
    stage = RouteStage(f"id-{name}", name, "127.0.0.1", 1, LayerRange.parse(layers), 1)
    return ReadyStage(stage, kv_tokens_free)


ranges = st.lists(st.integers(0, NUM_LAYERS), min_size=2, max_size=2, unique=True).map(
    lambda ends: LayerRange(min(ends), max(ends))
)
meshes = st.lists(st.tuples(ranges, st.integers(0, 3)), max_size=6).map(
    lambda items: [ready(str(layers), chr(97 + i), kv) for i, (layers, kv) in enumerate(items)]
)


def all_routes(stages: list[ReadyStage]) -> list[tuple[ReadyStage, ...]]:
    """Every exact cover, by trying all orders: slow and plain."""
    return [
        row
        for count in range(1, len(stages) + 1)
        for chosen in combinations(stages, count)
        for row in permutations(chosen)
        if [layer for entry in row for layer in entry.stage.layers] == list(range(NUM_LAYERS))
    ]


@given(meshes)
def test_a_route_covers_every_layer_exactly_once_and_exists_whenever_one_is_possible(
    stages: list[ReadyStage],
) -> None:
    route = find_route(stages, NUM_LAYERS)
    assert (route is not None) == bool(all_routes(stages))
    if route is not None:
        assert [layer for stage in route.stages for layer in stage.layers] == list(range(NUM_LAYERS))


@given(meshes)
def test_the_route_has_the_fewest_stages_and_of_those_the_most_free_cache_at_its_tightest(
    stages: list[ReadyStage],
) -> None:
    free = {entry.stage.node_id: entry.kv_tokens_free for entry in stages}
    if (route := find_route(stages, NUM_LAYERS)) is not None:
        best = min((len(row), -min(entry.kv_tokens_free for entry in row)) for row in all_routes(stages))
        assert (len(route.stages), -min(free[stage.node_id] for stage in route.stages)) == best


@given(meshes, st.randoms())
def test_the_order_in_which_stages_are_listed_does_not_matter(stages, random) -> None:  # type: ignore[no-untyped-def]
    shuffled = random.sample(stages, len(stages))
    assert find_route(shuffled, NUM_LAYERS) == find_route(stages, NUM_LAYERS)


@given(st.lists(ranges, max_size=6))
def test_adding_the_missing_layers_makes_a_route_and_nothing_is_missing_where_there_is_one(
    served: list[LayerRange],
) -> None:
    missing = missing_layers(served, NUM_LAYERS)
    stages = [ready(str(layers), str(index)) for index, layers in enumerate(served)]
    assert (missing == ()) == (find_route(stages, NUM_LAYERS) is not None)
    filled = [ready(str(layers), f"new-{layers}") for layers in missing]
    assert find_route([*stages, *filled], NUM_LAYERS) is not None


def test_where_nothing_overlaps_the_missing_layers_are_those_that_nobody_serves() -> None:
    served = [LayerRange(2, 4), LayerRange(6, 7)]
    assert missing_layers(served, 10) == (LayerRange(0, 2), LayerRange(4, 6), LayerRange(7, 10))


def test_stages_that_overlap_without_a_common_border_make_no_route() -> None:
    stages = [ready("0:3", "a"), ready("2:5", "b")]
    assert find_route(stages, NUM_LAYERS) is None
    assert missing_layers([entry.stage.layers for entry in stages], NUM_LAYERS) != ()


def test_equal_routes_are_told_apart_by_node_id() -> None:
    route = find_route([ready("0:5", "b"), ready("0:5", "a")], NUM_LAYERS)
    assert route is not None
    assert [stage.name for stage in route.stages] == ["a"]


def test_a_route_reads_as_the_way_a_request_takes() -> None:
    stages = (ready("0:11", "node-a").stage, ready("11:21", "node-b").stage, ready("21:30", "node-c").stage)
    assert str(Route(stages)) == "0:11 node-a → 11:21 node-b → 21:30 node-c"


def test_coverage_counts_stages_per_layer() -> None:
    assert count_coverage([LayerRange(0, 2), LayerRange(1, 3)], 4) == [1, 2, 1, 0]
