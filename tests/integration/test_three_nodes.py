"""The real model through three processes: the tokens of one process, the bytes of its own layers, an unmodified client."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
import pytest_asyncio
import torch

from coordinator.pipeline import Pipeline
from coordinator.routing import Route, RouteStage
from coordinator.token_pipeline import TokenRequest
from mesh.demo.local_mesh import LocalMesh, local_mesh
from mesh.demo.reference import one_process_answer
from mesh.layers import LayerRange
from mesh.model.engines import LoadedStage
from mesh.model.llama import StageStep
from mesh.model.loader import load_stage
from mesh.model.local import generate, generate_with_logits
from mesh.model.sampling import SamplingParams
from mesh.wire.channel import parse_endpoint
from tests.support.prompts import real_prompts
from tests.support.releases import PackedRelease, pack

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.real_model, pytest.mark.timeout(300)]

KV_TOKENS = 2048
NEW_TOKENS = 16


@dataclass(frozen=True)
class World:
    """A running mesh of three nodes, and the same weights in this process."""

    packed: PackedRelease
    mesh: LocalMesh
    whole: LoadedStage
    scratch: Path
    client: openai.AsyncOpenAI  # the official one, as it comes

    @property
    def route(self) -> Route:
        def stage(seen: dict[str, dict[str, object]]) -> RouteStage:
            host, port = parse_endpoint(str(seen["ready"]["stage"]))
            plan = seen["plan"]
            return RouteStage(
                str(plan["node_id"]), str(plan["node"]), host, port, LayerRange.parse(str(plan["layers"])), plan["incarnation"]
            )  # fmt: skip

        return Route(tuple(stage(node.seen) for node in self.mesh.nodes))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(real_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    scratch = tmp_path_factory.mktemp("mesh")
    packed = pack(real_gguf, scratch / "publisher", name="smollm2-135m-instruct")
    release, manifest = packed.open(), packed.manifest
    torch.set_num_threads(1)  # as each node: another count may round differently
    layers = LayerRange(0, manifest.config.num_layers)
    whole = load_stage(
        manifest.config,
        layers,
        {ref: release.shard_path(ref) for ref in manifest.shards_for(layers)},
    )
    async with (
        local_mesh(
            packed.directory, packed.trust_file, manifest, scratch / "mesh", num_nodes=3, kv_tokens=KV_TOKENS
        ) as mesh,
        openai.AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield World(packed, mesh, whole, scratch / "mesh", client)


async def test_layers_are_spread_over_three_nodes_without_overlap(world: World) -> None:
    layers = [stage.layers for stage in world.route.stages]
    assert [layer for part in layers for layer in part] == list(range(30))


async def test_every_node_computes_with_the_kernel_of_this_process(world: World) -> None:
    assert {node.seen["plan"]["kernel"] for node in world.mesh.nodes} == {world.whole.kernel_id}


async def test_greedy_logits_through_three_processes_are_bit_identical_to_one(world: World) -> None:
    pipeline = Pipeline(lambda: world.route, return_logits=True)
    try:
        for ids in real_prompts(world.packed):
            expected = list(generate_with_logits(world.whole, ids, SamplingParams(), NEW_TOKENS))
            async with pipeline.session(TokenRequest("test", ids, NEW_TOKENS, SamplingParams())) as session:
                tokens = [token async for token in session.tokens()]
            assert tokens == [token for token, _ in expected]
            assert session.logits == [logits.tobytes() for _, logits in expected]
    finally:
        await pipeline.close()


async def test_sampled_tokens_through_three_processes_equal_one_process(world: World) -> None:
    sampling = SamplingParams(temperature=0.9, top_p=0.95, seed=7)
    ids = real_prompts(world.packed)[3]
    expected = list(generate(world.whole, ids, sampling, NEW_TOKENS))
    pipeline = Pipeline(lambda: world.route)
    try:
        async with pipeline.session(TokenRequest("test", ids, NEW_TOKENS, sampling)) as session:
            assert [token async for token in session.tokens()] == expected
    finally:
        await pipeline.close()


async def test_no_node_fetched_or_holds_a_byte_of_other_layers(world: World) -> None:
    manifest = world.packed.manifest
    for node in world.mesh.nodes:
        own = manifest.shards_for(LayerRange.parse(node.seen["plan"]["layers"]))
        wanted = sum(ref.size for ref in own)
        fetched = node.seen["fetched"]
        assert wanted <= fetched["payload_bytes"] <= 1.01 * wanted
        assert fetched["redundant_bytes"] >= 0
        data = world.scratch / node.name
        held = {path.name for path in data.rglob("*.safetensors")}
        assert held == {ref.file for ref in own}
        blobs = {path.name for path in (data / "shards" / "blobs").iterdir()}
        assert blobs == {ref.root for ref in own}


async def test_official_client_streams_the_answer_of_one_process(world: World) -> None:
    question = "What is a torrent? Answer in two sentences."
    text, count = one_process_answer(world.packed.directory, world.packed.trust, question, 24)
    stream = await world.client.chat.completions.create(
        model="smollm2-135m-instruct",
        messages=[{"role": "user", "content": question}],
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage.completion_tokens == count
    assert chunks[-1].mesh["route"] == str(world.route)


async def test_echoed_logprobs_are_those_of_one_process(world: World) -> None:
    """As lm-eval's local-completions asks for them."""
    ids = real_prompts(world.packed)[5]
    assert len(ids) > 128  # more than a chunk
    answer = await world.client.completions.create(
        model="smollm2-135m-instruct", prompt=list(ids), max_tokens=1, temperature=0, logprobs=1, echo=True
    )
    told = answer.choices[0].logprobs
    assert told is not None
    cache = world.whole.new_cache(len(ids))
    [rows] = world.whole.run([StageStep(cache, 0, torch.tensor(ids), None, False, all_rows=True)])
    expected = world.whole.logits(rows).double().log_softmax(-1)
    wanted = [float(expected[place, token]) for place, token in enumerate(ids[1:])]
    assert told.token_logprobs[1:-1] == pytest.approx(wanted, abs=1e-3)
    greedy = [logprob == max(top.values()) for logprob, top in
              zip(told.token_logprobs[1:-1], told.top_logprobs[1:-1], strict=True)]  # fmt: skip
    assert greedy == [int(expected[place].argmax()) == token for place, token in enumerate(ids[1:])]


async def test_an_answer_follows_its_schema(world: World) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    answer = await world.client.chat.completions.create(
        model="smollm2-135m-instruct",
        messages=[
            {"role": "user", "content": "The capital of France and how many people live there, as JSON."}
        ],
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
        temperature=0,
        max_tokens=60,
    )
    assert answer.choices[0].finish_reason == "stop"
    told = json.loads(answer.choices[0].message.content or "")
    assert told["city"] in ("Paris", "Rome")
    assert isinstance(told["people"], int)


async def test_ready_means_that_every_node_has_answered(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.mesh.url) as client:
        response = await client.get("/readyz")
    assert (response.status_code, response.json()["models"][0]["ready"]) == (200, True)


async def test_several_sessions_at_once_all_get_answers(world: World) -> None:
    client = world.client
    answers = await asyncio.gather(
        *(
            client.chat.completions.create(
                model="smollm2-135m-instruct",
                messages=[{"role": "user", "content": f"Count from {n} to {n + 3}."}],
                max_tokens=8,
                seed=n,
            )
            for n in range(6)
        )
    )
    assert all(0 < answer.usage.completion_tokens <= 8 for answer in answers)


async def test_client_that_hangs_up_frees_every_stage(world: World) -> None:
    """The next request needs more KV cache than would be left if the first were still held anywhere."""
    client = world.client
    body = {
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": "Tell me a long story."}],
    }
    async with (
        httpx.AsyncClient(base_url=world.mesh.url, trust_env=False) as http,
        http.stream(
            "POST", "/v1/chat/completions", json={**body, "stream": True, "max_tokens": 1500}
        ) as response,
    ):
        lines = response.aiter_lines()
        await anext(lines)
    async with asyncio.timeout(5):
        while True:
            try:
                answer = await client.chat.completions.create(**body, max_tokens=1900, stop=[" "])
                break
            except openai.InternalServerError as exc:
                assert exc.code == "no_capacity"
                await asyncio.sleep(0.02)
    assert answer.choices[0].finish_reason in ("stop", "length")


async def test_errors_are_openai_shaped(world: World) -> None:
    client = world.client
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="gpt-5", messages=messages)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        await client.chat.completions.create(
            model="smollm2-135m-instruct", messages=[{"role": "user", "content": "word " * 9000}]
        )
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as too_many:
        await client.chat.completions.create(
            model="smollm2-135m-instruct", messages=messages, max_tokens=8192
        )
    assert too_many.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as empty:
        await client.chat.completions.create(model="smollm2-135m-instruct", messages=[])
    assert empty.value.param == "messages"


async def test_models_are_listed_with_what_is_served(world: World) -> None:
    models = [model async for model in await world.client.models.list()]
    assert [model.id for model in models] == ["smollm2-135m-instruct"]


async def test_mesh_run_streams_to_stdout(world: World) -> None:
    from mesh.demo.processes import command

    process = await asyncio.create_subprocess_exec(
        command("mesh"), "run", "Say hello.", "--url", world.mesh.url, "--max-tokens", "8", "--temperature", "0",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert out.decode().strip()


# Last in this file: it takes the mesh apart.
async def test_every_node_proves_that_it_holds_the_licensed_bytes(world: World) -> None:
    mesh = Path(sys.executable).with_name("mesh")
    asked = await asyncio.create_subprocess_exec(
        str(mesh), "verify", "--fleet", "--coordinator", world.mesh.grpc, "--token", world.mesh.token,
        "--trust", str(world.packed.trust_file), "--json",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await asked.communicate()
    assert asked.returncode == 0
    report = json.loads(said)["report"]
    assert [node["state"] for node in report["nodes"]] == ["proved"] * 3
    assert report["unproved_layers"] == []


async def test_missing_layers_are_a_503_that_says_which_and_when_to_retry(world: World) -> None:
    lost = world.mesh.nodes[1]
    layers = lost.seen["plan"]["layers"]
    assert await lost.stop() == 143
    with pytest.raises(openai.InternalServerError) as refusal:
        await world.client.chat.completions.create(
            model="smollm2-135m-instruct", messages=[{"role": "user", "content": "hi"}]
        )
    assert refusal.value.status_code == 503
    assert refusal.value.code == "mesh_incomplete"
    assert layers in refusal.value.message
    assert 0 < int(refusal.value.response.headers["retry-after"]) <= 120
    health = httpx.get(f"{world.mesh.url}/health", trust_env=False)
    assert health.status_code == 503
    assert json.loads(health.text)["error"]["type"] == "unavailable_error"
