"""LangChain's ChatOpenAI, over chat completions and over responses."""

from __future__ import annotations

import openai
from checking import CITY, KEY, MODEL, QUESTION, TOO_LONG, URL, check, raised, run_checks
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


def model(**fields: object) -> ChatOpenAI:
    return ChatOpenAI(
        **{
            "model": MODEL,
            "base_url": f"{URL}/v1",
            "api_key": KEY,
            "max_retries": 0,
            "temperature": 0,
            "max_tokens": 60,
            **fields,
        }
    )


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


@check
def chat() -> None:
    answer = model(max_tokens=8).invoke(QUESTION)
    assert answer.content
    assert answer.usage_metadata["total_tokens"] > 0


@check
def stream() -> None:
    text = "".join(chunk.content for chunk in model(max_tokens=8).stream(QUESTION))
    assert text == model(max_tokens=8).invoke(QUESTION).content


@check
def tools() -> None:
    bound = model().bind_tools([weather], tool_choice="any", parallel_tool_calls=False)
    answer = bound.invoke(QUESTION)
    [call] = answer.tool_calls
    assert call["name"] == "weather"
    history = [
        HumanMessage(QUESTION),
        answer,
        ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]),
    ]
    assert model(max_tokens=4).invoke(history).response_metadata["finish_reason"]


@check
def structured_output() -> None:
    wanted = {"title": "city", "description": "A city.", **CITY}
    for method in ("json_schema", "function_calling"):
        assert model().with_structured_output(wanted, method=method).invoke(QUESTION)["city"] in (
            "Oslo",
            "Rome",
        )


@check
def responses() -> None:
    answer = model(max_tokens=16, use_responses_api=True).invoke(QUESTION)
    assert answer.text


@check
def overflow() -> None:
    raised(ContextOverflowError, lambda: model().invoke(TOO_LONG))
    raised(ContextOverflowError, lambda: list(model().stream(TOO_LONG)))


@check
def wrong_key() -> None:
    raised(openai.AuthenticationError, lambda: model(api_key="wrong").invoke(QUESTION))


run_checks()
