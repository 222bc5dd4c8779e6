"""Tools over HTTP: what the model reads, what the client gets back, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from coordinator.api import create_app
from coordinator.pipeline import Pipeline
from tests.support.api_client import app_for, chat, client_of, events_of
from tests.support.fake_pipeline import FakePipeline
from tests.support.http_server import serving
from tests.support.served_model import EOS, health, served_model
from tests.support.stage_servers import serve_cut

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
SAID = b'Hm. <tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'  # fmt: skip


async def post(script: bytes = SAID, template: str | None = None, **fields: Any) -> tuple[Any, FakePipeline]:
    pipeline = FakePipeline([*script, EOS])
    model = served_model(
        pipeline, context_length=4096, **({} if template is None else {"template": template})
    )
    async with client_of(create_app({"tiny": model}, lambda: health(1, 1, 1, 1))) as client:
        response = await client.post("/v1/chat/completions", json=chat(**{"tools": [WEATHER, CLOCK], "max_tokens": 500, **fields}))  # fmt: skip
    return response, pipeline


def prompt_of(pipeline: FakePipeline) -> str:
    return "".join(chr(i) if i < 256 else "|" for i in pipeline.requests[0].prompt_ids)


async def test_calls_are_told_whole() -> None:
    response, pipeline = await post()
    [choice] = response.json()["choices"]
    message = choice["message"]
    assert (choice["finish_reason"], message["content"]) == ("tool_calls", "Hm.")
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city": "Oslo"}'},
        {"name": "clock", "arguments": "{}"},
    ]
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert '"name": "weather"' in prompt_of(pipeline)


async def test_calls_are_streamed_in_order_with_their_index() -> None:
    response, _ = await post(stream=True)
    *chunks, done = events_of(response.text)
    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Hm."
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                assert part["index"] == len(calls)
                assert (part["type"], part["function"]["arguments"]) == ("function", "")
                calls.append(part["function"] | {"parts": 0})
            else:
                assert part["index"] == len(calls) - 1
                calls[-1]["arguments"] += part["function"]["arguments"]
                calls[-1]["parts"] += 1
    assert [(call["name"], call["arguments"]) for call in calls] == [
        ("weather", '{"city": "Oslo"}'),
        ("clock", "{}"),
    ]
    assert calls[0]["parts"] > 5  # as they come: a byte is a token here
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["tool_calls"]


async def test_each_choice_has_its_own_calls() -> None:
    response, _ = await post(n=2)
    for choice in response.json()["choices"]:
        assert len(choice["message"]["tool_calls"]) == 2


async def test_without_parallel_calls_the_first_is_told() -> None:
    response, _ = await post(parallel_tool_calls=False)
    assert len(response.json()["choices"][0]["message"]["tool_calls"]) == 1


async def test_a_call_cut_off_by_its_length_is_no_call_to_make() -> None:
    response, _ = await post(max_tokens=60)
    assert response.json()["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("fields", [{"tool_choice": "none"}, {"tools": None}, {"tools": []}])
async def test_without_tools_text_is_text(fields: dict[str, Any]) -> None:
    response, pipeline = await post(**fields)
    choice = response.json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", SAID.decode())
    assert "weather" not in prompt_of(pipeline)


async def test_special_tokens_of_the_syntax_are_seen_and_never_shown() -> None:
    """The tiny vocabulary has no [TOOL_CALLS]; a template that opens calls with one of its specials stands for it."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}{{ tools[0].function.name }}[TOOL_CALLS]{% endif %}"
    response, pipeline = await post(b'[TOOL_CALLS][{"name": "clock", "arguments": {}}]', template)
    [choice] = response.json()["choices"]
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "clock"
    assert prompt_of(pipeline) == "hiweather[TOOL_CALLS]"


async def test_history_with_calls_and_results_is_read() -> None:
    called = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    _, pipeline = await post(
        b"It is noon.",
        messages=[
            {"role": "user", "content": "Time?"},
            {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "content": "12:00", "tool_call_id": "call_1"},
        ],
    )
    assert prompt_of(pipeline).endswith(
        '|assistant\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>|\n'
        "|user\n<tool_response>\n12:00\n</tool_response>|\n|assistant\n"
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools[0].function.name"),
        ({"tools": [CLOCK, CLOCK]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, "tools[0].function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}]}, "tools[0].function.parameters"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"function": 3}, 4]}}}, "tool_choice"),
        ({"grammar": 'start: "x"'}, "grammar"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": ""}}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}]}, "messages[0].tool_calls[0].function.arguments"),
    ],
)  # fmt: skip
async def test_wrong_tools_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    response, pipeline = await post(**fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert pipeline.requests == []


async def test_required_named_strict_and_allowed_calls_of_a_model_that_would_say_anything() -> None:
    """Over the whole mesh, with random weights: only the grammar can make it call, and call rightly."""
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    async with serve_cut([2]) as (route, served):
        pipeline = Pipeline(lambda: route)
        model = served_model(pipeline, context_length=2048, route=route)
        try:
            async with (
                serving(create_app({"tiny": model}, lambda: health(1, 1, 1, 1))) as url,
                openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
            ):
                for choice in (
                    "required",
                    {"type": "function", "function": {"name": "weather"}},
                    {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]}},
                ):  # fmt: skip
                    answer = await client.chat.completions.create(
                        model="tiny",
                        messages=[{"role": "user", "content": "hi"}],
                        tools=[strict] if choice == "required" else [CLOCK, strict],
                        tool_choice=choice,
                        parallel_tool_calls=False,
                        max_tokens=200,
                        temperature=1.5,
                        seed=3,
                    )
                    [told] = answer.choices
                    assert told.finish_reason == "tool_calls"
                    [call] = told.message.tool_calls
                    assert call.function.name == "weather"
                    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
            assert all(each.budget.free_tokens == each.budget.total_tokens for each in served)
        finally:
            await pipeline.close()


async def test_the_sdk_puts_streamed_calls_together() -> None:
    pipeline = FakePipeline([*SAID, EOS])
    async with (
        serving(app_for(pipeline, context_length=4096)) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
        client.chat.completions.stream(
            model="tiny", messages=[{"role": "user", "content": "hi"}], tools=[WEATHER, CLOCK]
        ) as stream,
    ):
        completion = await stream.get_final_completion()
    calls = completion.choices[0].message.tool_calls
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("weather", {"city": "Oslo"}),
        ("clock", {}),
    ]
