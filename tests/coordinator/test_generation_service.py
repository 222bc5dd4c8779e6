"""Generation over real gRPC on this machine, in front of a scripted pipeline: what is said, refused and given up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from coordinator.access.api_keys import KeyRecord, Limits, create_key
from coordinator.access.callers import Callers, NoKeys
from coordinator.generation_service import GenerationService
from coordinator.servers import serving_grpc
from coordinator.serving import MeshHealth
from mesh.wire import coordinator_pb2_grpc, generation_pb2, generation_pb2_grpc
from tests.support.clock import ManualClock
from tests.support.fake_pipeline import FakePipeline
from tests.support.served_model import EOS, health, served_model

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def channel_to(
    pipeline: FakePipeline, callers: Callers | None = None, now: MeshHealth | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    model = served_model(pipeline)

    def health_now() -> MeshHealth:
        return now or health(1, 1, 1, 1)

    service = GenerationService({model.name: model}, health_now, callers or Callers(NoKeys()))
    nodes = coordinator_pb2_grpc.CoordinatorServicer()
    async with (
        serving_grpc(("127.0.0.1", 0), nodes, service, health_now) as (host, port),
        grpc.aio.insecure_channel(f"{host}:{port}") as channel,
    ):
        yield channel


def asking(**fields: Any) -> generation_pb2.GenerateRequest:
    return json_format.ParseDict(
        {"model": "tiny", "chat": CHAT, "max_tokens": 50, **fields}, generation_pb2.GenerateRequest()
    )


async def ask(
    pipeline: FakePipeline,
    request: generation_pb2.GenerateRequest,
    metadata: Sequence[tuple[str, str]] = (),
    callers: Callers | None = None,
) -> list[generation_pb2.GenerateEvent]:
    async with channel_to(pipeline, callers) as channel:
        call = generation_pb2_grpc.GenerationStub(channel).Generate(request, metadata=metadata, timeout=10)
        return [event async for event in call]


async def test_text_comes_as_it_becomes_certain_and_then_how_it_ended() -> None:
    pipeline = FakePipeline([*"häl".encode(), EOS])
    events = await ask(pipeline, asking())
    assert [event.text.text for event in events[:-1]] == ["h", "ä", "l"]
    finish = events[-1].finish
    assert finish.reason == generation_pb2.Finish.STOP
    assert finish.completion_tokens == 5
    assert finish.route == "0:2 node-a → 2:4 node-b"
    assert pipeline.open_sessions == 0


async def test_the_first_text_is_there_before_the_second_token_is() -> None:
    pipeline = FakePipeline(b"ab", park_at=1)
    async with channel_to(pipeline) as channel:
        call = generation_pb2_grpc.GenerationStub(channel).Generate(asking(), timeout=10)
        first = await call.read()
        assert first.text.text == "a"
        assert pipeline.tokens_given == 1
        pipeline.resume.set()


async def test_every_field_reaches_the_sampler() -> None:
    pipeline = FakePipeline(b"a")
    await ask(
        pipeline,
        json_format.ParseDict(
            {
                "model": "tiny",
                "token_ids": {"ids": [1, 2, 3]},
                "max_tokens": 5,
                "sampling": {
                    "temperature": 0.5,
                    "top_p": 0.9,
                    "seed": 7,
                    "top_k": 4,
                    "min_p": 0.1,
                    "repetition_penalty": 1.2,
                    "presence_penalty": 0.5,
                    "frequency_penalty": -0.5,
                    "logit_bias": {5: 2.0},
                    "top_logprobs": 3,
                },
            },
            generation_pb2.GenerateRequest(),
        ),
    )
    (request,) = pipeline.requests
    params = request.sampling
    assert request.prompt_ids == (1, 2, 3)
    assert request.max_new_tokens == 5
    assert (params.temperature, params.top_p, params.seed, params.top_k, params.min_p) == (
        0.5,
        0.9,
        7,
        4,
        0.1,
    )
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.2, 0.5, -0.5)
    assert (params.logit_bias, params.top_logprobs) == (((5, 2.0),), 3)


async def test_scores_and_several_answers_come_by_their_number() -> None:
    events = await ask(FakePipeline(b"a"), asking(answers=2, max_tokens=1, sampling={"top_logprobs": 2}))
    texts = {event.answer: event.text for event in events if event.HasField("text")}
    assert sorted(texts) == [0, 1]
    scored = texts[1].tokens[0]
    assert (scored.token_id, scored.logprob) == (ord("a"), -0.5)
    assert [likely.token_id for likely in scored.top] == [ord("a"), ord("a") + 1]
    assert sum(event.HasField("finish") for event in events) == 2


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"model": "absent"}, grpc.StatusCode.NOT_FOUND, "model"),
        ({"chat": {}}, grpc.StatusCode.INVALID_ARGUMENT, "chat"),
        (
            {"chat": {"messages": [{"role": "robot"}]}},
            grpc.StatusCode.INVALID_ARGUMENT,
            "chat.messages[0].role",
        ),
        ({"max_tokens": 0}, grpc.StatusCode.INVALID_ARGUMENT, "max_tokens"),
        ({"max_tokens": 600}, grpc.StatusCode.INVALID_ARGUMENT, "max_tokens"),
        ({"sampling": {"temperature": 3}}, grpc.StatusCode.INVALID_ARGUMENT, "sampling.temperature"),
        ({"sampling": {"temperature": "NaN"}}, grpc.StatusCode.INVALID_ARGUMENT, "sampling.temperature"),
        ({"sampling": {"top_logprobs": 21}}, grpc.StatusCode.INVALID_ARGUMENT, "sampling.top_logprobs"),
        ({"sampling": {"logit_bias": {900: 1}}}, grpc.StatusCode.INVALID_ARGUMENT, "sampling.logit_bias"),
        ({"stop": [""]}, grpc.StatusCode.INVALID_ARGUMENT, "stop"),
        ({"answers": 129}, grpc.StatusCode.INVALID_ARGUMENT, "answers"),
        ({"json_schema": "{"}, grpc.StatusCode.INVALID_ARGUMENT, "json_schema"),
        ({"json_schema": "[]"}, grpc.StatusCode.INVALID_ARGUMENT, "json_schema"),
        ({"json_schema": '{"type": 7}'}, grpc.StatusCode.INVALID_ARGUMENT, "json_schema"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
async def test_what_breaks_a_rule_is_refused_by_its_name(
    fields: dict[str, Any], code: grpc.StatusCode, param: str
) -> None:
    pipeline = FakePipeline(b"a")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(pipeline, asking(**fields))
    assert caught.value.code() == code
    assert dict(caught.value.trailing_metadata() or ())["mesh-param"] == param
    assert pipeline.requests == []


async def test_cancelling_and_a_deadline_free_the_session() -> None:
    for how in ("cancel", "deadline"):
        pipeline = FakePipeline(b"ab", park_at=1)
        async with channel_to(pipeline) as channel:
            stub = generation_pb2_grpc.GenerationStub(channel)
            call = stub.Generate(asking(), timeout=10 if how == "cancel" else 0.3)
            assert (await call.read()).text.text == "a"
            if how == "cancel":
                call.cancel()
            async with asyncio.timeout(2):
                await pipeline.left.wait()
        assert pipeline.open_sessions == 0


class Keys:
    def __init__(self) -> None:
        self.records: list[KeyRecord] = []

    async def add_key(self, record: KeyRecord) -> None:
        self.records.append(record)

    async def keys(self) -> list[KeyRecord]:
        return self.records


async def test_keys_and_quotas_are_those_of_the_http_side() -> None:
    keys = Keys()
    key, _ = await create_key(keys, "", 0.0, limits=Limits(requests_per_minute=1))
    callers = Callers(keys, ManualClock())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(FakePipeline(b"a"), asking(), callers=callers)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    bearer = (("authorization", f"Bearer {key}"),)
    assert (await ask(FakePipeline(b"a"), asking(), bearer, callers))[0].text.text == "a"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(FakePipeline(b"a"), asking(), bearer, callers)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    told = dict(caught.value.trailing_metadata() or ())
    assert (told["mesh-code"], told["retry-after"]) == ("rate_limit_exceeded", "60")


async def test_the_call_is_named_as_the_client_named_it() -> None:
    pipeline = FakePipeline(b"a")
    async with channel_to(pipeline) as channel:
        call = generation_pb2_grpc.GenerationStub(channel).Generate(
            asking(), metadata=(("x-request-id", "mine-1"),), timeout=10
        )
        assert dict(await call.initial_metadata())["x-request-id"] == "mine-1"
        async for _ in call:
            pass
    assert pipeline.requests[0].request_id == "mine-1"


@pytest.mark.parametrize(("coverage", "status"), [((1, 1, 1, 1), "SERVING"), ((1, 0, 1, 1), "NOT_SERVING")])
async def test_health_says_whether_an_answer_is_possible(coverage: tuple[int, ...], status: str) -> None:
    async with channel_to(FakePipeline(b"a"), now=health(*coverage)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "mesh.wire.v1.Generation"):
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status) == status


async def test_reflection_and_the_list_of_models_need_no_proto_file() -> None:
    async with channel_to(FakePipeline(b"a")) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        told = {service.name for service in (await call.read()).list_services_response.service}
        await call.done_writing()
        assert {"mesh.wire.v1.Generation", "mesh.wire.v1.Coordinator", "grpc.health.v1.Health"} <= told
        models = await generation_pb2_grpc.GenerationStub(channel).ListModels(
            generation_pb2.ListModelsRequest(), timeout=10
        )
        assert [(model.name, model.context_length, model.is_ready) for model in models.models] == [
            ("tiny", 512, True)
        ]
