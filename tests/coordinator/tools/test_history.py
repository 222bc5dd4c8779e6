"""Calls and results reach the model as its own template writes them, and as plain text where it writes none."""

from __future__ import annotations

from typing import Any

from coordinator.tools.history import for_template, short_id
from coordinator.tools.syntax import GENERIC, HERMES, LLAMA3, LLAMA3_SINGLE, MISTRAL, MISTRAL_ARGS, syntax_of
from coordinator.tools.tool import Tool
from mesh.model.chat_template import ChatTemplate
from tests.support.tiny_models import CHATML

ADD = Tool("add", "Adds.", {"type": "object", "properties": {}})


def call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "content": "", "tool_calls": [call("call_1", "add", '{"a": 1}'), call("call_2", "add", "oops")]},
    {"role": "tool", "content": "3", "tool_call_id": "call_1"},
    {"role": "tool", "content": "failed", "tool_call_id": "call_2"},
    {"role": "user", "content": "Thanks"},
]  # fmt: skip


def test_the_template_gives_away_the_syntax() -> None:
    def told(source: str) -> object:
        return syntax_of(ChatTemplate(source, {}))

    assert told(CHATML) is GENERIC
    assert told("{% if tools %}{{ '<tool_call>' }}{% endif %}") is HERMES
    assert told("{% if tools is defined %}[TOOL_CALLS]{% endif %}") is MISTRAL
    assert told("{% if tools %}[TOOL_CALLS]name[ARGS]{% endif %}") is MISTRAL_ARGS
    assert told("{% if tools %}x{% endif %}") is LLAMA3
    assert told("{% if tools %}{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}") is LLAMA3_SINGLE  # fmt: skip
    # Words alone say nothing: a template that never looks at tools does not take them.
    assert told("{{ '<tool_call>' }}") is GENERIC


def test_arguments_are_objects_and_results_know_their_tool() -> None:
    messages, tools = for_template(CONVERSATION, [ADD], HERMES)
    calls = [each["function"]["arguments"] for each in messages[1]["tool_calls"]]
    assert calls == [{"a": 1}, "oops"]
    assert [message.get("name") for message in messages[2:4]] == ["add", "add"]
    assert tools[0]["function"]["name"] == "add"
    assert CONVERSATION[1]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'  # what was given stays


def test_calls_of_one_message_come_one_by_one_where_the_template_wants_that() -> None:
    messages, _ = for_template(CONVERSATION, [ADD], LLAMA3_SINGLE)
    assert [message["role"] for message in messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "user",
    ]
    assert [message["content"] for message in messages if message["role"] == "tool"] == ["3", "failed"]


def test_mistral_gets_ids_of_nine_and_pairs_stay_pairs() -> None:
    messages, _ = for_template(CONVERSATION, [ADD], MISTRAL)
    ids = [each["id"] for each in messages[1]["tool_calls"]]
    assert ids == [messages[2]["tool_call_id"], messages[3]["tool_call_id"]]
    assert all(len(each) == 9 and each.isalnum() for each in ids)
    assert len(set(ids)) == 2
    assert short_id("abcDEF123") == "abcDEF123"


def test_a_template_without_tools_gets_text_in_which_turns_alternate() -> None:
    messages, tools = for_template(CONVERSATION, [ADD], GENERIC)
    assert tools == []
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert '"name": "add"' in messages[0]["content"]
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in messages[2]["content"]
    assert messages[3]["content"] == (
        "<tool_response>\n3\n</tool_response>\n<tool_response>\nfailed\n</tool_response>\nThanks"
    )
    assert all(message.keys() == {"role", "content"} for message in messages)


def test_the_tools_join_a_system_message_that_is_there() -> None:
    messages, _ = for_template([{"role": "system", "content": "Be brief."}, CONVERSATION[0]], [ADD], GENERIC)
    assert messages[0]["content"].startswith("Be brief.\n\n")
    assert len(messages) == 2


def test_without_tools_a_conversation_is_left_alone() -> None:
    plain = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user", "user")]
    for syntax in (GENERIC, HERMES, LLAMA3, MISTRAL):
        assert for_template(plain, [], syntax) == (plain, [])
