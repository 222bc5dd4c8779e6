"""LiteLLM, speaking OpenAI's dialect and Anthropic's."""

from __future__ import annotations

import json

import litellm
from checking import CITY, KEY, MODEL, QUESTION, TOO_LONG, URL, check, raised, run_checks

litellm.suppress_debug_info = True
litellm.telemetry = False
MESSAGES = [{"role": "user", "content": QUESTION}]
OPENAI = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": KEY, "num_retries": 0}
ANTHROPIC = {"model": f"anthropic/{MODEL}", "api_base": URL, "api_key": KEY, "num_retries": 0}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": CITY}}


@check
def chat() -> None:
    for provider in (OPENAI, ANTHROPIC):
        answer = litellm.completion(**provider, messages=MESSAGES, max_tokens=8)
        assert answer.choices[0].message.content
        assert answer.usage.prompt_tokens > 0


@check
def stream() -> None:
    chunks = list(litellm.completion(**OPENAI, messages=MESSAGES, max_tokens=8, temperature=0, stream=True))
    whole = litellm.completion(**OPENAI, messages=MESSAGES, max_tokens=8, temperature=0)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    )


@check
def tools() -> None:
    answer = litellm.completion(
        **OPENAI,
        messages=MESSAGES,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=60,
    )
    [call] = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")


@check
def json_schema() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    answer = litellm.completion(**OPENAI, messages=MESSAGES, response_format=wanted, max_tokens=40)
    assert json.loads(answer.choices[0].message.content)["city"] in ("Oslo", "Rome")


@check
def overflow() -> None:
    messages = [{"role": "user", "content": TOO_LONG}]
    for provider in (OPENAI, ANTHROPIC):
        for is_stream in (False, True):
            raised(
                litellm.ContextWindowExceededError,
                lambda provider=provider, is_stream=is_stream: list(
                    litellm.completion(**provider, messages=messages, max_tokens=8, stream=is_stream)
                ),
            )


@check
def wrong_key() -> None:
    raised(
        litellm.AuthenticationError,
        lambda: litellm.completion(**{**OPENAI, "api_key": "wrong"}, messages=MESSAGES),
    )


run_checks()
