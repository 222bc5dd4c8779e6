"""A config written before a field existed keeps its bytes, and one with the field says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh import strict_json
from mesh.architecture import LlamaConfig, RopeConfig
from mesh.errors import CheckpointUnsupported, ManifestInvalid
from tests.mesh.weights.example_manifest import CONFIG

YARN = RopeConfig(kind="yarn", factor=4.0, beta_fast=16.0, attention_factor=1.2)
CONFIGS = {
    "plain": CONFIG,
    "qwen2": replace(CONFIG, qkv_bias=True),
    "qwen3": replace(CONFIG, qk_norm=True, rope=YARN),
    "mistral": replace(CONFIG, sliding_window=100),
    "biases": replace(CONFIG, qkv_bias=True, output_bias=True, mlp_bias=True),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_json_gives_the_config_back(config: LlamaConfig) -> None:
    data = strict_json.dumps(config.to_json())
    assert LlamaConfig.from_json(strict_json.loads(data, max_bytes=10_000)) == config


def test_fields_that_llama_does_not_need_are_left_out_of_its_json() -> None:
    assert (
        CONFIG.to_json()
        .keys()
        .isdisjoint({"qkv_bias", "output_bias", "mlp_bias", "qk_norm", "sliding_window"})
    )
    assert CONFIG.to_json()["rope"].keys().isdisjoint({"beta_fast", "beta_slow", "attention_factor"})
    assert CONFIGS["mistral"].to_json()["sliding_window"] == 100


@pytest.mark.parametrize("name", ["hidden_size", "tied", "eos_token_ids", "rope"])
def test_a_field_that_always_existed_must_be_there(name: str) -> None:
    value = CONFIG.to_json()
    del value[name]
    with pytest.raises(ManifestInvalid, match=name):
        LlamaConfig.from_json(value)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ManifestInvalid, match="'qk_morm'"):
        LlamaConfig.from_json(CONFIG.to_json() | {"qk_morm": True})


@pytest.mark.parametrize(
    "changed",
    [
        {"sliding_window": 0},
        {"sliding_window": 512},
        {"qk_norm": 1},
        {"qkv_bias": None},
        {"sliding_window": True},
    ],
)
def test_values_out_of_bounds_are_refused(changed: dict[str, object]) -> None:
    with pytest.raises(CheckpointUnsupported, match=next(iter(changed))):
        replace(CONFIG, **changed)
