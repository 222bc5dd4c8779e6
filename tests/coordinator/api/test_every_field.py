"""Every field of a request that clients are known to send: honoured, ignored, or refused by its name. Never dropped in silence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from coordinator.token_pipeline import TokenRequest
from tests.support.api_client import app_for, client_of
from tests.support.fake_pipeline import FakePipeline
from tests.support.served_model import EOS

SAID = b"one two END three"
FUNCTION = {"type": "function", "function": {"name": "f"}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50},
    "/v1/completions": {"prompt": "hi", "max_tokens": 50},
    "/v1/responses": {"input": "hi", "max_output_tokens": 50},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50},
}
CHAT, COMPLETIONS, RESPONSES, MESSAGES = BODIES


# Made once: nothing that is asked for here outlives its answer.
PIPELINE = FakePipeline([*SAID, EOS])
APP = app_for(PIPELINE, context_length=4096)


async def ask(path: str, **fields: Any) -> tuple[int, Any, TokenRequest | None]:
    PIPELINE.requests.clear()
    async with client_of(APP) as client:
        response = await client.post(path, json={"model": "tiny", "seed": 7, **BODIES[path], **fields})
    is_json = "json" in response.headers["content-type"]
    body = response.json() if is_json else response.text
    return response.status_code, body, PIPELINE.requests[0] if PIPELINE.requests else None


Check = Callable[[TokenRequest, Any], bool]


def sampling(name: str, value: object) -> Check:
    return lambda request, _: getattr(request.sampling, name) == pytest.approx(value)


def text_of(body: Any) -> str:
    choice = body["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def prompt_of(request: TokenRequest) -> str:
    return "".join(chr(i) if i < 256 else "|" for i in request.prompt_ids)


SHARED: list[tuple[dict[str, Any], Check]] = [
    ({"temperature": 0.3}, sampling("temperature", 0.3)),
    ({"top_p": 0.3}, sampling("top_p", 0.3)),
    ({"top_k": 3}, sampling("top_k", 3)),
    ({"min_p": 0.3}, sampling("min_p", 0.3)),
    ({"repetition_penalty": 1.3}, sampling("repetition_penalty", 1.3)),
    ({"presence_penalty": -2}, sampling("presence_penalty", -2)),
    ({"frequency_penalty": 2}, sampling("frequency_penalty", 2)),
    ({"seed": 5}, sampling("seed", 5)),
    ({"logit_bias": {"65": -100}}, lambda request, _: request.sampling.logit_bias == ((65, -100.0),)),
    ({"min_tokens": 5}, lambda request, _: request.grammar is not None),
    ({"grammar": 'start: "x"'}, lambda request, _: request.grammar is not None),
    ({"grammar": 'root ::= "x" | "y"'}, lambda request, _: request.grammar is not None),
    ({"json_schema": {"type": "object"}}, lambda request, _: request.grammar is not None),
    ({"guided_json": {"type": "object"}}, lambda request, _: request.grammar is not None),
    ({"guided_json": '{"type": "object"}'}, lambda request, _: request.grammar is not None),
    ({"guided_regex": "[a-z]+"}, lambda request, _: request.grammar is not None),
    ({"guided_choice": ["é", "no\n"]}, lambda request, _: request.grammar is not None),
    ({"guided_grammar": 'start: "x"'}, lambda request, _: request.grammar is not None),
    ({"structured_outputs": {"json": {"type": "object"}}}, lambda request, _: request.grammar is not None),
    ({"structured_outputs": {"regex": "a+"}}, lambda request, _: request.grammar is not None),
    ({"structured_outputs": {"choice": ["a"]}}, lambda request, _: request.grammar is not None),
    ({"structured_outputs": {"grammar": 'start: "x"'}}, lambda request, _: request.grammar is not None),
    ({"structured_outputs": {"json_object": True}}, lambda request, _: request.grammar is not None),
]  # fmt: skip
OF_CHAT: list[tuple[dict[str, Any], Check]] = [
    ({"max_completion_tokens": 9}, lambda request, _: request.max_new_tokens == 9),
    ({"max_tokens": 8}, lambda request, _: request.max_new_tokens == 8),
    ({"n": 2}, lambda _, body: len(body["choices"]) == 2),
    ({"stop": "END"}, lambda _, body: text_of(body) == "one two "),
    ({"stop": ["zzz", "END"]}, lambda _, body: text_of(body) == "one two "),
    ({"stop_token_ids": [ord("t")]}, lambda _, body: text_of(body) == "one "),
    ({"ignore_eos": True}, lambda _, body: body["usage"]["completion_tokens"] == len(SAID) + 1),
    ({"stop": "END", "min_tokens": 12}, lambda _, body: text_of(body) == SAID.decode()),
    ({"logprobs": True, "top_logprobs": 0}, lambda _, body: body["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []),
    ({"logprobs": True, "top_logprobs": 20}, lambda request, _: request.sampling.top_logprobs == 20),
    ({"stream": True}, lambda _, body: body.rstrip().endswith("data: [DONE]")),
    ({"stream": True, "stream_options": {"include_usage": True}}, lambda _, body: '"choices":[],"usage"' in body),
    ({"stream": True, "stream_options": {"include_obfuscation": False, "continuous_usage_stats": True}}, lambda _, body: "[DONE]" in body),
    ({"response_format": {"type": "json_object"}}, lambda request, _: request.grammar is not None),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}}}, lambda request, _: request.grammar is not None),
    ({"tools": [FUNCTION]}, lambda request, _: '"name": "f"' in prompt_of(request) and request.grammar is None),
    ({"tools": [FUNCTION], "tool_choice": "required"}, lambda request, _: request.grammar is not None),
    ({"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "f"}}}, lambda request, _: request.grammar is not None),
    ({"tools": [FUNCTION], "tool_choice": "none"}, lambda request, _: '"name": "f"' not in prompt_of(request)),
    ({"tools": [FUNCTION], "parallel_tool_calls": False}, lambda request, _: request.grammar is None),
    ({"add_generation_prompt": False}, lambda request, _: prompt_of(request) == "|user\nhi|\n"),
    ({"messages": [{"role": "assistant", "content": "We"}], "continue_final_message": True}, lambda request, _: prompt_of(request) == "|assistant\nWe"),
    ({"chat_template_kwargs": {"enable_thinking": False}}, lambda request, _: "hi" in prompt_of(request)),
    ({"return_token_ids": True}, lambda request, body: (body["prompt_token_ids"], body["choices"][0]["token_ids"]) == (list(request.prompt_ids), [*SAID, EOS])),
]  # fmt: skip
OF_COMPLETIONS: list[tuple[dict[str, Any], Check]] = [
    ({"prompt": [1, 2]}, lambda request, _: request.prompt_ids == (1, 2)),
    ({"prompt": ["a", "b"]}, lambda _, body: len(body["choices"]) == 2),
    ({"prompt": [[1], [2, 3]]}, lambda request, _: request.prompt_ids == (1,)),
    ({"echo": True}, lambda _, body: text_of(body) == "hi" + SAID.decode()),
    ({"logprobs": 3}, lambda request, _: request.sampling.top_logprobs == 3),
    ({"best_of": 3, "n": 2}, lambda _, body: len(body["choices"]) == 2),
    ({"return_token_ids": True}, lambda request, body: (body["choices"][0]["prompt_token_ids"], body["choices"][0]["token_ids"], text_of(body)) == (list(request.prompt_ids), [*SAID, EOS], SAID.decode())),
]  # fmt: skip
HONOURED = [
    *((path, fields, check) for path in BODIES for fields, check in SHARED),
    *((CHAT, fields, check) for fields, check in OF_CHAT),
    *((COMPLETIONS, fields, check) for fields, check in OF_COMPLETIONS),
]


@pytest.mark.parametrize(
    ("path", "fields", "holds"), HONOURED, ids=lambda value: "" if callable(value) else str(value)[:60]
)
async def test_a_field_does_what_it_says(path: str, fields: dict[str, Any], holds: Check) -> None:
    status, body, request = await ask(path, **fields)
    assert status == 200, body
    assert request is not None
    assert holds(request, body)


IGNORED: dict[str, Any] = {
    "user": "someone",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "auto"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "verbosity": "low",
    "reasoning_effort": "low",
    "prediction": {"type": "content", "content": "x"},
    "moderation": {"model": "x"},
    "reasoning": {"effort": "low"},
    "thinking": {"type": "disabled"},
    "modalities": ["text"],
    "something_nobody_has_heard_of": {"x": [1]},
}


@pytest.mark.parametrize("path", BODIES)
async def test_what_clients_send_unasked_changes_nothing(path: str) -> None:
    _, _, plain = await ask(path)
    for fields in ({name: value} for name, value in IGNORED.items()):
        status, body, request = await ask(path, **fields)
        assert status == 200, body
        assert request is not None
        assert dataclasses.replace(request, request_id="") == dataclasses.replace(plain, request_id="")


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    *((path, fields, next(iter(fields))) for path in BODIES for fields in (
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "x", "format": "wav"}},
        {"web_search_options": {}},
        {"functions": [{"name": "f"}]},
        {"function_call": {"name": "f"}},
        {"typical_p": 0.5},
        {"repeat_penalty": 1.1},
        {"temperature": 2.1},
        {"top_p": 1.1},
        {"logit_bias": {"999": 1}},
        {"stop_token_ids": [999]},
        {"min_tokens": -1},
    )),
    (CHAT, {"suffix": "x"}, "suffix"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
    (CHAT, {"min_tokens": 51}, "min_tokens"),
    (CHAT, {"min_tokens": 2, "ignore_eos": True}, "min_tokens"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content[0]"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
    (CHAT, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    (CHAT, {"continue_final_message": True}, "continue_final_message"),
    (CHAT, {"guided_choice": []}, "guided_choice"),
    (CHAT, {"guided_regex": "("}, "guided_regex"),
    (CHAT, {"guided_json": "nonsense"}, "guided_json"),
    (CHAT, {"grammar": "nonsense"}, "grammar"),
    (CHAT, {"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag"),
    (CHAT, {"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    (CHAT, {"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    (CHAT, {"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
    (COMPLETIONS, {"suffix": "x"}, "suffix"),
    (COMPLETIONS, {"tools": [FUNCTION]}, "tools"),
    (COMPLETIONS, {"response_format": {"type": "json_object"}}, "response_format"),
    (COMPLETIONS, {"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
    (COMPLETIONS, {"logprobs": 21}, "logprobs"),
    (COMPLETIONS, {"best_of": 1, "n": 2}, "best_of"),
    (COMPLETIONS, {"min_tokens": 51}, "min_tokens"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "fields", "param"), REFUSED, ids=lambda value: "" if callable(value) else str(value)[:60]
)
async def test_a_field_that_cannot_be_honoured_is_refused_by_name(
    path: str, fields: dict[str, Any], param: str
) -> None:
    status, body, request = await ask(path, **fields)
    assert (status, request) == (400, None), body
    assert body["error"]["param"].split(".1")[0].split("[")[0] == param.split("[")[0]
    assert body["error"]["param"].startswith(param)
    assert body["error"]["message"]
