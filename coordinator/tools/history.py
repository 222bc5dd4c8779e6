"""Messages with calls and results, as the model's chat template reads them.

A template without tools gets plain text instead: the tools in the system message, calls and results between the marks that
this message tells of. Models that were never trained on tools follow it as well as they follow anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from coordinator.tools.syntax import CallSyntax
from coordinator.tools.tool import Tool, parsed_arguments

Message = dict[
    str, Any
]  # role, content; tool_calls of an assistant; tool_call_id and name of a tool's result

_SHORT_ID = 9
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

_PROMPT = """\
You can call functions. They are described here, each as JSON on a line of its own:
<tools>
{tools}
</tools>
To call one, write its name and its arguments as JSON between these marks, and nothing after them:
<tool_call>
{{"name": "the function's name", "arguments": {{"a parameter": "its value"}}}}
</tool_call>
The result comes in the next message, between <tool_response> and </tool_response>. Answer without a call where none helps."""


def for_template(
    messages: Sequence[Message], tools: Sequence[Tool], syntax: CallSyntax
) -> tuple[list[Message], list[dict[str, Any]]]:
    """Messages and tools to render."""
    if not syntax.is_native:
        return _as_text(messages, tools), []
    told = list(_with_names(messages))
    if syntax.is_single:
        told = list(_one_call_each(told))
    if syntax.has_short_ids:
        told = [_with_short_ids(message) for message in told]
    return [_with_objects(message) for message in told], [tool.to_json() for tool in tools]


def short_id(call_id: str) -> str:
    """Itself if it is nine letters and digits; else nine that stand for it."""
    if len(call_id) == _SHORT_ID and call_id.isascii() and call_id.isalnum():
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode()).digest()[:8])
    letters = ""
    for _ in range(_SHORT_ID):
        number, digit = divmod(number, len(_ALPHABET))
        letters += _ALPHABET[digit]
    return letters


def _with_names(messages: Sequence[Message]) -> Iterator[Message]:
    """A result says which tool it is of; clients tell only the call's id."""
    names: dict[str, str] = {}
    for message in messages:
        for call in message.get("tool_calls", ()):
            names[call["id"]] = call["function"]["name"]
        if message["role"] == "tool" and (name := names.get(message.get("tool_call_id", ""))):
            yield {"name": name, **message}
        else:
            yield message


def _one_call_each(messages: Sequence[Message]) -> Iterator[Message]:
    """Calls made together, as if one after the other: each with its result behind it."""
    results = {
        message["tool_call_id"]: message
        for message in messages
        if message["role"] == "tool" and "tool_call_id" in message
    }
    told: set[str] = set()
    for message in messages:
        calls = message.get("tool_calls", ())
        if len(calls) > 1:
            for number, call in enumerate(calls):
                yield {
                    **message,
                    "tool_calls": [call],
                    "content": message["content"] if number == 0 else "",
                }
                if (result := results.get(call["id"])) is not None:
                    told.add(call["id"])
                    yield result
        elif message.get("tool_call_id") not in told:
            yield message


def _with_short_ids(message: Message) -> Message:
    if calls := message.get("tool_calls"):
        return {**message, "tool_calls": [{**call, "id": short_id(call["id"])} for call in calls]}
    if "tool_call_id" in message:
        return {**message, "tool_call_id": short_id(message["tool_call_id"])}
    return message


def _with_objects(message: Message) -> Message:
    """Arguments as objects: templates write them with ``tojson``, which would quote a text again."""
    if not (calls := message.get("tool_calls")):
        return message
    return {**message, "tool_calls": [{**call, "function": _with_object(call["function"])} for call in calls]}


def _with_object(function: dict[str, Any]) -> dict[str, Any]:
    return {**function, "arguments": parsed_arguments(function["arguments"])}


def _as_text(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    told: list[Message] = []
    for message in messages:
        plain = _plain(message)
        # Many templates want user and assistant to take turns; results come as the user's.
        has_result = message["role"] == "tool" or (told and told[-1].get("is_result"))
        if has_result and told and told[-1]["role"] == plain["role"] == "user":
            told[-1] = {**told[-1], "content": f"{told[-1]['content']}\n{plain['content']}"}
        else:
            told.append({**plain, "is_result": True} if message["role"] == "tool" else plain)
    told = [{"role": message["role"], "content": message["content"]} for message in told]
    if not tools:
        return told
    prompt = _PROMPT.format(tools="\n".join(_json(tool.to_json()) for tool in tools))
    if told and told[0]["role"] == "system":
        return [{"role": "system", "content": f"{told[0]['content']}\n\n{prompt}"}, *told[1:]]
    return [{"role": "system", "content": prompt}, *told]


def _plain(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [
        {"name": call["function"]["name"], "arguments": parsed_arguments(call["function"]["arguments"])}
        for call in message.get("tool_calls", ())
    ]
    marked = [f"<tool_call>\n{_json(call)}\n</tool_call>" for call in calls]
    parts = [message["content"], *marked] if message["content"] or not marked else marked
    return {"role": message["role"], "content": "\n".join(parts)}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
