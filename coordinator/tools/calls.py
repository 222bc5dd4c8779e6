"""The grammar, in llguidance's Lark, of answers that hold calls.

Two kinds: the whole answer is calls (a call is required), or text in which a call, once it begins, follows its schema (strict
tools). The tokens of a syntax's marks are named by id where they are special; text cannot spell them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from coordinator.tools.syntax import CallSyntax
from coordinator.tools.tool import ToolUse

SpecialId = Callable[[str], int | None]  # of a token's name

_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def call_grammar(
    use: ToolUse,
    syntax: CallSyntax,
    special_id: SpecialId,
    options: Mapping[str, Any],
    content_schema: Mapping[str, Any] | None = None,
) -> str:
    """``options`` are the library's, of every schema; ``content_schema`` is that of an answer that calls nothing."""
    marks = {mark: _mark(mark, special_id) for mark in syntax.marks}
    is_many = use.is_parallel and not syntax.is_single
    rules = [
        f"calls: {_calls(syntax, marks, is_many)}",
        *_call_rules(use, syntax, marks, options),
    ]
    if use.must_call:
        start = ["start: calls"]
    elif content_schema is not None:
        start = ["start: calls | content", f"content: {_schema(content_schema, options)}"]
    else:
        start = _free(syntax, special_id, marks, is_many)
    return "\n".join([*start, *rules])


def _calls(syntax: CallSyntax, marks: Mapping[str, str], is_many: bool) -> str:
    """Calls from the opener on."""
    if syntax.is_list:
        body = f"call ({_text(syntax.separator)} call)*" if is_many else "call"
        return f'{marks[syntax.opener]} "[" {body} "]"'
    one = "call" if syntax.is_bare else f"{marks[syntax.opener]} call"
    if not is_many:
        return one
    separator = f"{_text(syntax.separator)} " if syntax.separator else ""
    return f"{one} ({separator}{one})*"


def _call_rules(
    use: ToolUse, syntax: CallSyntax, marks: Mapping[str, str], options: Mapping[str, Any]
) -> list[str]:
    """``call``: one of the tools with its arguments, what closes it included."""
    names, rules = [], []
    for number, tool in enumerate(use.callable):
        names.append(f"call_{number}")
        name = _text(tool.name)
        if syntax.arguments_mark:
            body = f"{_text(tool.name)} {marks[syntax.arguments_mark]} arguments_{number}"
        else:
            head = f'{{"name": {name}, "{syntax.arguments_key}": '
            body = f'{_text(head)} arguments_{number} "}}"'
        if syntax.closer:
            body = f'"\\n" {body} "\\n" {marks[syntax.closer]}'
        is_held = tool.is_strict or use.must_call
        # A schema of a tool that is not strict may ask for more than can be held.
        wanted = options if tool.is_strict else {**options, "lenient": True}
        rules += [
            f"call_{number}: {body}",
            f"arguments_{number}: {_schema(tool.parameters if is_held else _ANY_OBJECT, wanted)}",
        ]
    return [f"call: {' | '.join(names)}", *rules]


def _free(syntax: CallSyntax, special_id: SpecialId, marks: Mapping[str, str], is_many: bool) -> list[str]:
    """Text, calls, or text and then calls."""
    if syntax.is_bare:
        # Text does not begin as a call does; else nobody could tell which it is to be.
        return ["start: calls | TEXT?", r"TEXT: /[^{\s](?s:.*)/"]
    repeat = "*" if is_many else "?"
    inner = '"[" call (", " call)* "]"' if syntax.is_list else "call"
    if special_id(syntax.opener) is not None:
        return [f"start: TEXT? ({marks[syntax.opener]} {inner} TEXT?){repeat}", "TEXT: /(?s:.+)/"]
    opener = _regex(syntax.opener)
    return [
        f"start: (before {inner}){repeat} REST?",
        f"before[lazy]: /(?s:.*){opener}/",  # ends where the opener does
        f"REST: ~/(?s:.*){opener}(?s:.*)/",
    ]


def _mark(mark: str, special_id: SpecialId) -> str:
    token_id = special_id(mark)
    return _text(mark) if token_id is None else f"<[{token_id}]>"


def _schema(schema: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _regex(text: str) -> str:
    return "".join(f"\\{char}" if not char.isalnum() and char not in "<>_" else char for char in text)
