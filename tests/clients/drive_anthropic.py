"""The anthropic package, as it comes."""

from __future__ import annotations

import anthropic
from checking import CITY, KEY, MODEL, QUESTION, TOO_LONG, URL, check, raised, run_checks

client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
MESSAGES = [{"role": "user", "content": QUESTION}]
TOOL = {"name": "weather", "description": "Of a city.", "input_schema": CITY}


@check
def message() -> None:
    answer = client.messages.create(model=MODEL, max_tokens=8, messages=MESSAGES, system="Be brief.")
    assert answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.input_tokens > 0
    assert answer._request_id


@check
def stream() -> None:
    fields = {"model": MODEL, "max_tokens": 8, "messages": MESSAGES, "extra_body": {"temperature": 0}}
    with client.messages.stream(**fields) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    whole = client.messages.create(**fields)
    assert text == final.content[0].text == whole.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens


@check
def tools() -> None:
    choice = {"type": "any", "disable_parallel_tool_use": True}
    fields = {"model": MODEL, "max_tokens": 60, "messages": MESSAGES, "tools": [TOOL], "tool_choice": choice}
    with client.messages.stream(**fields) as stream:
        [call] = stream.get_final_message().content
    assert (call.type, call.name) == ("tool_use", "weather")
    assert call.input["city"] in ("Oslo", "Rome")
    history = [
        *MESSAGES,
        {"role": "assistant", "content": [call.model_dump(exclude_none=True)]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}]},
    ]
    after = client.messages.create(model=MODEL, max_tokens=4, messages=history, tools=[TOOL])
    assert after.stop_reason in ("end_turn", "max_tokens", "tool_use")


@check
def count() -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=MESSAGES)
    answer = client.messages.create(model=MODEL, max_tokens=1, messages=MESSAGES)
    assert counted.input_tokens == answer.usage.input_tokens


@check
def beta_fields_are_ignored() -> None:
    answer = client.beta.messages.create(
        model=MODEL,
        max_tokens=2,
        messages=MESSAGES,
        betas=["context-management-2025-06-27"],
        context_management={"edits": []},
    )
    assert answer.content


@check
def overflow() -> None:
    messages = [{"role": "user", "content": TOO_LONG}]
    fields = {"model": MODEL, "max_tokens": 8, "messages": messages}
    error = raised(anthropic.BadRequestError, lambda: client.messages.create(**fields))
    assert "prompt is too long: " in str(error)


@check
def bearer_token() -> None:
    bearer = anthropic.Anthropic(base_url=URL, api_key=None, auth_token=KEY, max_retries=0)
    assert bearer.messages.count_tokens(model=MODEL, messages=MESSAGES).input_tokens > 0


@check
def wrong_key() -> None:
    stranger = anthropic.Anthropic(base_url=URL, api_key="wrong", max_retries=0)
    fields = {"model": MODEL, "max_tokens": 8, "messages": MESSAGES}
    raised(anthropic.AuthenticationError, lambda: stranger.messages.create(**fields))


@check
def unknown_model() -> None:
    raised(
        anthropic.NotFoundError,
        lambda: client.messages.create(model="claude", max_tokens=8, messages=MESSAGES),
    )


run_checks()
