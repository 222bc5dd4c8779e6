"""Which fields of a request are honoured, refused by name, or ignored."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api_client import app_for, chat, client_of
from tests.support.fake_pipeline import FakePipeline
from tests.support.served_model import EOS


async def post(**fields: Any) -> tuple[int, Any, FakePipeline]:
    pipeline = FakePipeline([*b"ok", EOS])
    async with client_of(app_for(pipeline)) as client:
        response = await client.post("/v1/chat/completions", json=chat(**fields))
    return response.status_code, response.json().get("error"), pipeline


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x", "format": "wav"}),
        ("web_search_options", {}),
        ("repeat_penalty", 1.1),
    ],
)
async def test_what_would_change_the_answer_is_refused_by_name(name: str, value: object) -> None:
    status, error, pipeline = await post(**{name: value})
    assert status == 400
    assert (error["code"], error["param"]) == ("unsupported_parameter", name)
    assert name in error["message"]
    assert pipeline.requests == []


async def test_what_asks_for_nothing_is_accepted() -> None:
    status, _, pipeline = await post(
        n=1,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        logprobs=False,
        top_logprobs=None,
        logit_bias={},
        presence_penalty=0,
        frequency_penalty=0.0,
        modalities=["text"],
        user="someone",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        prompt_cache_key="k",
        safety_identifier="s",
        reasoning_effort="low",
        verbosity="low",
        parallel_tool_calls=True,
        something_nobody_has_heard_of={"x": [1]},
    )
    assert status == 200
    assert len(pipeline.requests) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"model": None}, "model"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"seed": 2**64}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"logit_bias": {"300": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logprobs": 3}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"ignore_eos": "yes"}, "ignore_eos"),
        ({"timeout": 0}, "timeout"),
        ({"ignore_eos": True, "response_format": {"type": "json_object"}}, "ignore_eos"),
        ({"stop": ""}, "stop[0]"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ],
)
async def test_a_wrong_value_is_400_and_names_its_field(fields: dict[str, Any], param: str) -> None:
    status, error, pipeline = await post(**fields)
    assert (status, error["code"], error["type"]) == (400, "invalid_value", "invalid_request_error")
    assert error["param"] == param
    assert pipeline.requests == []


async def test_a_lone_surrogate_is_not_text() -> None:
    async with client_of(app_for(FakePipeline(b"a"))) as client:
        response = await client.post(
            "/v1/chat/completions",
            content=b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
            headers={"content-type": "application/json"},
        )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages[0].content[0].text"


async def prompt_of(*messages: dict[str, Any]) -> str:
    """The prompt as the session got it; a byte is a token here, and specials are above them."""
    status, error, pipeline = await post(messages=list(messages))
    assert status == 200, error
    return "".join(chr(i) if i < 256 else "|" for i in pipeline.requests[0].prompt_ids)


async def test_roles_and_parts_become_what_the_template_knows() -> None:
    prompt = await prompt_of(
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
            "name": "x",
        },
        {"role": "assistant", "content": None, "refusal": None},
    )
    assert prompt == "|system\nbe brief|\n|user\none\ntwo|\n|assistant\n|\n|assistant\n"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]},
            "messages[0].content[0]",
        ),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "messages[0].content[0]"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[0].function_call"),
    ],
)
async def test_images_sound_and_old_calls_are_refused_by_place(message: dict[str, Any], param: str) -> None:
    status, error, _ = await post(messages=[message])
    assert (status, error["code"], error["param"]) == (400, "unsupported_parameter", param)
