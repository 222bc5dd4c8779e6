import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.placement import Capacity, propose
from coordinator.routing import ReadyStage, RouteStage, count_coverage, find_route
from mesh.architecture import LlamaConfig, RopeConfig
from mesh.demo.splitting import memory_per_node
from mesh.errors import NotEnoughMemory, UsageError
from mesh.layers import LayerRange
from mesh.model.memory import RUNTIME_BYTES, plan_stage

KV_TOKENS = 256


def config_of(num_layers: int = 6, vocab_size: int = 300, *, tied: bool = False) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        vocab_size=vocab_size,
        context_length=2048,
        rms_norm_eps=1e-5,
        rope=RopeConfig(),
        tied=tied,
        bos_token_id=None,
        eos_token_ids=(),
    )


def memory_for(config: LlamaConfig, layers: str) -> int:
    """Bytes that exactly hold these layers."""
    return plan_stage(config, LayerRange.parse(layers), KV_TOKENS).total_bytes


def proposal(config: LlamaConfig, reserved: list[str], memory_bytes: int, layers: str | None = None) -> str:
    insisted = None if layers is None else LayerRange.parse(layers)
    taken = [LayerRange.parse(text) for text in reserved]
    return str(propose(config, taken, Capacity(memory_bytes, KV_TOKENS, insisted)))


# Vocabularies around the weight of a layer: the embedding is sometimes light, sometimes worth many layers.
configs = st.builds(config_of, st.integers(1, 12), st.sampled_from([300, 4_000, 30_000]), tied=st.booleans())


@st.composite
def situations(draw: st.DrawFn) -> tuple[LlamaConfig, list[LayerRange], int]:
    config = draw(configs)
    ends = st.lists(st.integers(0, config.num_layers), min_size=2, max_size=2, unique=True)
    reserved = draw(st.lists(ends.map(lambda pair: LayerRange(min(pair), max(pair))), max_size=5))
    whole = memory_for(config, f"0:{config.num_layers}")
    return config, reserved, draw(st.integers(RUNTIME_BYTES, whole + 1))


@given(situations(), st.randoms())
def test_a_proposal_fits_the_memory_is_inside_the_model_and_does_not_depend_on_the_order_of_facts(
    situation, random
) -> None:  # type: ignore[no-untyped-def]
    config, reserved, memory_bytes = situation
    capacity = Capacity(memory_bytes, KV_TOKENS)
    try:
        layers = propose(config, reserved, capacity)
    except NotEnoughMemory:
        smallest = min(memory_for(config, f"{layer}:{layer + 1}") for layer in range(config.num_layers))
        assert memory_bytes < smallest
        return
    assert plan_stage(config, layers, KV_TOKENS).total_bytes <= memory_bytes
    assert layers.stop <= config.num_layers
    assert propose(config, random.sample(reserved, len(reserved)), capacity) == layers


@given(configs, st.data())
def test_equal_nodes_that_come_one_after_the_other_complete_the_model(
    config: LlamaConfig, data: st.DataObject
) -> None:
    num_nodes = data.draw(st.integers(1, config.num_layers))
    capacity = Capacity(memory_per_node(config, num_nodes, KV_TOKENS), KV_TOKENS)
    taken: list[LayerRange] = []
    for _ in range(num_nodes):
        taken.append(propose(config, taken, capacity))
    assert min(count_coverage(taken, config.num_layers)) >= 1
    ready = [
        ReadyStage(RouteStage(str(index), str(index), "127.0.0.1", 1, layers, 1), 0)
        for index, layers in enumerate(taken)
    ]
    assert find_route(ready, config.num_layers) is not None


def test_the_first_node_gets_the_whole_model_where_it_fits() -> None:
    config = config_of(6)
    assert proposal(config, [], memory_for(config, "0:6")) == "0:6"
    assert proposal(config, [], memory_for(config, "0:6") - 1) == "0:5"


def test_a_gap_is_filled_from_its_start_and_not_past_its_end() -> None:
    config = config_of(6)
    plenty = memory_for(config, "0:6")
    assert proposal(config, ["0:2", "4:6"], plenty) == "2:4"
    assert proposal(config, ["0:1"], memory_for(config, "1:3")) == "1:3"


def test_the_first_of_several_gaps_comes_first() -> None:
    config = config_of(8)
    assert proposal(config, ["0:2", "4:6"], memory_for(config, "0:8")) == "2:4"


def test_a_node_too_small_for_the_embedding_takes_layers_further_in() -> None:
    config = config_of(6, vocab_size=30_000)
    memory_bytes = memory_for(config, "1:3")
    assert memory_bytes < memory_for(config, "0:1")
    assert proposal(config, [], memory_bytes) == "1:3"


def test_a_complete_model_is_doubled_where_it_is_thinnest() -> None:
    config = config_of(6)
    memory_bytes = max(memory_for(config, "0:3"), memory_for(config, "3:6"))
    assert proposal(config, ["0:3", "3:6", "0:3"], memory_bytes) == "3:6"
    assert proposal(config, ["0:3", "3:6", "3:6"], memory_bytes) == "0:3"


def test_spare_stages_begin_and_end_where_others_do_so_that_routes_can_pass_them() -> None:
    config = config_of(9)
    # Three layers and a bit would fit elsewhere too; only these three are of use the moment one is lost.
    assert proposal(config, ["0:4", "4:6", "6:9", "0:4"], memory_for(config, "3:7")) in ("4:6", "6:9")


def test_layers_that_the_volunteer_insists_on_are_proposed_even_if_others_hold_them() -> None:
    config = config_of(6)
    assert proposal(config, ["0:6"], memory_for(config, "2:4"), "2:4") == "2:4"


def test_insisted_layers_that_do_not_fit_are_refused_with_both_sizes() -> None:
    config = config_of(6)
    with pytest.raises(
        NotEnoughMemory, match=r"layers 2:4 need .* MiB .*has .* MiB; raise --memory"
    ) as refused:
        proposal(config, [], memory_for(config, "2:4") - 1, "2:4")
    assert "\n" not in str(refused.value)


def test_insisted_layers_outside_of_the_model_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--layers 4:7: the model has layers 0:6"):
        proposal(config_of(6), [], 1 << 40, "4:7")


def test_a_node_that_fits_no_layer_is_told_what_one_needs_and_what_it_has() -> None:
    config = config_of(6)
    with pytest.raises(NotEnoughMemory, match=r"one layer .* needs .* this node has 1.0 MiB"):
        proposal(config, [], 1 << 20)
