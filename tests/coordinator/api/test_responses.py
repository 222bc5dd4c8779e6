"""The Responses dialect: what the model reads, the events and their order, and what a stateless server refuses."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from coordinator.token_pipeline import PipelineLost
from mesh.errors import RequestRefused
from tests.support.api_client import app_for, client_of
from tests.support.fake_pipeline import FakePipeline, refused
from tests.support.http_server import serving
from tests.support.served_model import EOS

CALL = b'Hm. <tool_call>\n{"name": "shell", "arguments": {"command": ["ls"]}}\n</tool_call>'
SHELL: dict[str, Any] = {
    "type": "function",
    "name": "shell",
    "description": "Runs a command.",
    "strict": False,
    "parameters": {"type": "object", "properties": {"command": {"type": "array"}}},
}
PATCH: dict[str, Any] = {"type": "custom", "name": "apply_patch", "description": "Edits.", "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"}}  # fmt: skip


async def post(
    script: bytes = b"Hello", pipeline: FakePipeline | None = None, **fields: Any
) -> tuple[Any, FakePipeline]:
    pipeline = pipeline or FakePipeline([*script, EOS])
    async with client_of(app_for(pipeline, context_length=4096)) as client:
        response = await client.post("/v1/responses", json={"model": "tiny", "input": "hi", **fields})
    return response, pipeline


def prompt_of(pipeline: FakePipeline) -> str:
    return "".join(chr(i) if i < 256 else "|" for i in pipeline.requests[0].prompt_ids)


def named_events(text: str) -> list[dict[str, Any]]:
    """Every event under the name that its data has as type."""
    told = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n", 1)
        told.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {told[-1]['type']}"
    return told


async def test_a_response_is_told_whole() -> None:
    response, pipeline = await post(instructions="Be brief.", max_output_tokens=50)
    body = response.json()
    assert (body["object"], body["status"], body["store"]) == ("response", "completed", False)
    [item] = body["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]
    assert body["usage"]["output_tokens"] == 6
    assert body["usage"]["input_tokens"] == len(pipeline.requests[0].prompt_ids)
    assert body["mesh"]["hops"] == 2
    assert prompt_of(pipeline) == "|system\nBe brief.|\n|user\nhi|\n|assistant\n"
    assert pipeline.requests[0].max_new_tokens == 50


async def test_a_stream_adds_fills_and_ends_each_item_and_numbers_its_events() -> None:
    response, _ = await post(CALL, stream=True, tools=[SHELL])
    events = named_events(response.text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    once = [kind for index, kind in enumerate(kinds) if index == 0 or kinds[index - 1] != kind]
    assert once == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert events[0]["response"]["output"] == []
    said = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    arguments = "".join(each["delta"] for each in events if each["type"].endswith("arguments.delta"))
    message, call = events[-1]["response"]["output"]
    assert said == message["content"][0]["text"] == "Hm."
    assert json.loads(arguments) == json.loads(call["arguments"]) == {"command": ["ls"]}
    assert (call["type"], call["name"], call["status"]) == ("function_call", "shell", "completed")
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert [item["id"] for item in added] == [message["id"], call["id"]]
    assert "[DONE]" not in response.text


async def test_what_codex_sends_is_read() -> None:
    """Its items, its tools of kinds that nobody here runs, and the fields that it sends unasked."""
    response, pipeline = await post(
        instructions="You are an agent.",
        input=[
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "sandbox: on"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "list files"}]},
            {"type": "reasoning", "summary": [], "encrypted_content": "x"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Sure.", "annotations": []}]},
            {"type": "function_call", "call_id": "call_1", "name": "shell", "arguments": '{"command": ["ls"]}', "id": "fc_1"},
            {"type": "custom_tool_call", "call_id": "call_2", "name": "apply_patch", "input": "***"},
            {"type": "function_call_output", "call_id": "call_1", "output": "a.txt"},
            {"type": "custom_tool_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "done"}]},
        ],
        tools=[SHELL, PATCH, {"type": "web_search", "external_web_access": False}, {"type": "local_shell"}],
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning={"effort": "medium", "summary": "auto"},
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="k",
        service_tier="auto",
        text={"verbosity": "low"},
        client_metadata={"a": "b"},
    )  # fmt: skip
    assert response.status_code == 200, response.text
    prompt = prompt_of(pipeline)
    assert prompt.startswith("|system\nYou are an agent.\n\nsandbox: on\n\n")
    assert "web_search" not in prompt
    assert prompt.endswith(
        '|user\nlist files|\n|assistant\nSure.\n<tool_call>\n{"name": "shell", "arguments": {"command": ["ls"]}}\n</tool_call>\n'
        '<tool_call>\n{"name": "apply_patch", "arguments": {"input": "***"}}\n</tool_call>|\n'
        "|user\n<tool_response>\na.txt\n</tool_response>\n<tool_response>\ndone\n</tool_response>|\n|assistant\n"
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_a_custom_tool_gets_its_text(stream: bool) -> None:
    script = b'<tool_call>{"name": "apply_patch", "arguments": {"input": "*** \\"x\\"\\n"}}</tool_call>'
    response, _ = await post(script, tools=[PATCH], stream=stream)
    whole = named_events(response.text)[-1]["response"] if stream else response.json()
    [item] = whole["output"]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "apply_patch", '*** "x"\n')
    assert "arguments" not in item


async def test_an_answer_cut_short_is_incomplete() -> None:
    response, _ = await post(b"Hello", max_output_tokens=3, stream=True)
    last = named_events(response.text)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][0]["status"] == "incomplete"


async def test_an_answer_without_a_word_is_an_empty_message() -> None:
    response, _ = await post(b"")
    assert response.json()["output"][0]["content"][0]["text"] == ""


async def test_logprobs_are_told_if_they_are_included() -> None:
    response, _ = await post(b"ab", include=["message.output_text.logprobs"], top_logprobs=1)
    told = response.json()["output"][0]["content"][0]["logprobs"]
    assert [(each["token"], len(each["top_logprobs"])) for each in told] == [("a", 1), ("b", 1)]


async def test_a_stream_that_fails_ends_with_a_failed_response() -> None:
    pipeline = FakePipeline(b"abc", failure=PipelineLost("node-b is gone"), fail_at=2)
    response, _ = await post(pipeline=pipeline, stream=True)
    last = named_events(response.text)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"] == {"code": "node_lost", "message": "node-b is gone"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": "x" * 5000}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"n": 2}, "n"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"temperature": 3}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 5000}, "max_tokens"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": "wat"}}}}, "text.format.schema"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [SHELL], "tool_choice": {"type": "function", "name": "fly"}}, "tool_choice"),
        ({"audio": {"voice": "x"}}, "audio"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    response, pipeline = await post(**fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert pipeline.requests == []


async def test_the_sdk_creates_and_streams() -> None:
    async with (
        serving(app_for(FakePipeline([*CALL, EOS]), context_length=4096)) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        whole = await client.responses.create(model="tiny", input="hi", tools=[SHELL], store=False)
        assert (whole.output_text, whole.output[1].type, whole.output[1].name) == (
            "Hm.",
            "function_call",
            "shell",
        )
        async with client.responses.stream(model="tiny", input="hi", tools=[SHELL]) as stream:
            streamed = await stream.get_final_response()
        assert streamed.output_text == "Hm."
        assert json.loads(streamed.output[1].arguments) == {"command": ["ls"]}
        assert streamed.usage.total_tokens == whole.usage.total_tokens


async def test_the_sdk_raises_before_a_stream_begins() -> None:
    refusal = RequestRefused("layers 2:4 have no node", status=503, code="mesh_incomplete", retry_after=9)
    async with (
        serving(app_for(refused(refusal))) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError) as seen:
            await client.responses.create(model="tiny", input="hi", stream=True)
    assert seen.value.code == "mesh_incomplete"
