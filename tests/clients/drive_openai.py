"""The openai package, as it comes: version 2 and version 3."""

from __future__ import annotations

import json

import openai
from checking import CITY, KEY, MODEL, QUESTION, TOO_LONG, URL, check, raised, run_checks

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
MESSAGES = [{"role": "user", "content": QUESTION}]
TOOL = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": CITY, "strict": True}}  # fmt: skip
FLAT = {"type": "function", **TOOL["function"]}


@check
def models() -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


@check
def chat() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8, temperature=0)
    assert answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


@check
def stream() -> None:
    options = {"include_usage": True}
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8, temperature=0)
    *chunks, last = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=8, temperature=0, stream=True, stream_options=options
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert last.usage.completion_tokens == whole.usage.completion_tokens


@check
def tools() -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=60,
    )
    [choice] = answer.choices
    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    history = [*MESSAGES, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    after = client.chat.completions.create(
        model=MODEL, messages=history, tools=[TOOL], tool_choice="none", max_tokens=4
    )
    assert after.choices[0].finish_reason in ("stop", "length")


@check
def streamed_tools() -> None:
    with client.chat.completions.stream(
        model=MODEL,
        messages=MESSAGES,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
        max_tokens=60,
    ) as stream:
        [call] = stream.get_final_completion().choices[0].message.tool_calls
    assert call.function.parsed_arguments["city"] in ("Oslo", "Rome")


@check
def json_schema() -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": CITY, "strict": True},
        },
        max_tokens=40,
    )
    assert json.loads(answer.choices[0].message.content)["city"] in ("Oslo", "Rome")


@check
def completions() -> None:
    answer = client.completions.create(model=MODEL, prompt="The sky is", max_tokens=3, echo=True, logprobs=1)
    assert answer.choices[0].text.startswith("The sky is")
    assert answer.choices[0].logprobs.token_logprobs[0] is None


@check
def responses() -> None:
    whole = client.responses.create(
        model=MODEL, input=QUESTION, max_output_tokens=16, temperature=0, store=False
    )
    with client.responses.stream(model=MODEL, input=QUESTION, max_output_tokens=16, temperature=0) as stream:
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert said == whole.output_text != ""
    called = client.responses.create(
        model=MODEL,
        input=QUESTION,
        tools=[FLAT],
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=60,
    )
    [call] = called.output
    assert (call.type, call.name) == ("function_call", "weather")


@check
def overflow() -> None:
    messages = [{"role": "user", "content": TOO_LONG}]
    error = raised(
        openai.BadRequestError, lambda: client.chat.completions.create(model=MODEL, messages=messages)
    )
    assert error.code == "context_length_exceeded"


@check
def wrong_key() -> None:
    stranger = openai.OpenAI(base_url=f"{URL}/v1", api_key="wrong", max_retries=0)
    assert raised(openai.AuthenticationError, stranger.models.list).code == "invalid_api_key"


run_checks()
