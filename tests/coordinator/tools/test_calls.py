"""A grammar of calls lets through what the syntax and the schemas allow, and nothing else; what it lets through is read back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coordinator.grammar import SCHEMA_OPTIONS, GrammarCompiler
from coordinator.tools.calls import call_grammar
from coordinator.tools.reading import CallArguments, CallBegun, CallReader
from coordinator.tools.syntax import (
    GENERIC,
    HERMES,
    LLAMA3,
    LLAMA3_SINGLE,
    MISTRAL,
    MISTRAL_ARGS,
    CallSyntax,
)
from coordinator.tools.tool import Tool, ToolUse
from mesh.errors import RequestRefused
from tests.support.fake_pipeline import FakePipeline
from tests.support.served_model import served_model

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
ADD = Tool("add", "", SCHEMA, is_strict=True)
SAY = Tool(
    "say", "", {"type": "object", "properties": {"word": {"enum": ["yes", "no"]}}, "required": ["word"]}
)

CALL = {
    HERMES: '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
    GENERIC: '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
    LLAMA3: '{"name": "add", "parameters": {"a": 1}}',
    LLAMA3_SINGLE: '{"name": "add", "parameters": {"a": 1}}',
    MISTRAL: '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]',
    MISTRAL_ARGS: '[TOOL_CALLS]add[ARGS]{"a": 1}',
}
TWICE = {
    HERMES: f"{CALL[HERMES]}\n{CALL[HERMES]}",
    LLAMA3: f"{CALL[LLAMA3]}; {CALL[LLAMA3]}",
    MISTRAL: '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {"a": 2}}]',
    MISTRAL_ARGS: CALL[MISTRAL_ARGS] * 2,
}
syntaxes = pytest.mark.parametrize(
    "syntax", CALL, ids=lambda each: f"{each.name}-{each.is_single}{each.arguments_mark}"
)


async def is_allowed(use: ToolUse, syntax: CallSyntax, text: str | list[int], content: Any = None) -> bool:
    """Whether the text may be said, and the answer end with it. A byte is a token here."""
    model = served_model(FakePipeline(b""))
    special = {"[TOOL_CALLS]": 257} if isinstance(text, list) else {}
    lark = call_grammar(use, syntax, special.get, SCHEMA_OPTIONS, content)
    masks = (await GrammarCompiler(model.tokenizer, 300, (256, 258)).compile_lark(lark, "tools")).masks()
    for token_id in [*(text.encode() if isinstance(text, str) else text), 256]:
        mask = await masks.next()
        if not mask[token_id // 8] >> token_id % 8 & 1:
            return False
        masks.accept(token_id)
    return True


@syntaxes
async def test_a_required_call_is_the_whole_answer_and_fits_its_schema(syntax: CallSyntax) -> None:
    use = ToolUse((ADD, SAY), (ADD, SAY), must_call=True)
    call = CALL[syntax]
    assert await is_allowed(use, syntax, call)
    for wrong in ("", "Sure.", call[:-1], f"Sure. {call}", call.replace('"a"', '"b"'), call.replace("1", '"x"'), call.replace("add", "fly")):  # fmt: skip
        assert not await is_allowed(use, syntax, wrong), wrong
    said = call.replace("add", "say").replace('"a": 1', '"word": "yes"')
    assert await is_allowed(use, syntax, said)
    # A tool that is not strict is held to its schema where a call is required.
    assert not await is_allowed(use, syntax, said.replace("yes", "perhaps"))


@syntaxes
async def test_a_named_tool_is_the_only_one(syntax: CallSyntax) -> None:
    use = ToolUse((ADD, SAY), (SAY,), must_call=True)
    assert not await is_allowed(use, syntax, CALL[syntax])


@pytest.mark.parametrize("syntax", TWICE, ids=lambda each: each.name)
async def test_calls_are_parallel_only_if_they_may_be(syntax: CallSyntax) -> None:
    many = ToolUse((ADD,), (ADD,), must_call=True)
    one = ToolUse((ADD,), (ADD,), must_call=True, is_parallel=False)
    assert await is_allowed(many, syntax, TWICE[syntax])
    assert not await is_allowed(one, syntax, TWICE[syntax])
    assert await is_allowed(one, syntax, CALL[syntax])
    reader = CallReader(syntax, ["add"])
    pieces = [*reader.push(TWICE[syntax]), *reader.flush()]
    assert [type(piece) for piece in pieces] == [CallBegun, CallArguments] * 2


@syntaxes
async def test_a_strict_tool_leaves_the_model_free_until_it_calls(syntax: CallSyntax) -> None:
    use = ToolUse((ADD, SAY), (ADD, SAY))
    call = CALL[syntax]
    for text in ("", "No need.", "a < b <tool and [TOOL", call):
        assert await is_allowed(use, syntax, text), text
    assert not await is_allowed(use, syntax, call.replace("1", '"x"'))
    # One that is not may be called with anything.
    assert await is_allowed(use, syntax, call.replace("add", "say").replace('"a": 1', '"x": [3]'))
    if not syntax.is_bare:
        assert await is_allowed(use, syntax, f"Let me see. {call}")
        assert not await is_allowed(use, syntax, f"Let me see. {call.replace('add', 'fly')}")


async def test_a_mark_that_is_a_token_of_its_own_is_named_by_id() -> None:
    use = ToolUse((ADD,), (ADD,), must_call=True)
    body = b'[{"name": "add", "arguments": {"a": 1}}]'
    assert await is_allowed(use, MISTRAL, [257, *body])
    assert not await is_allowed(use, MISTRAL, [*b"[TOOL_CALLS]", *body])
    free = ToolUse((ADD,), (ADD,))
    assert await is_allowed(free, MISTRAL, [*b"Well. ", 257, *body])
    assert not await is_allowed(free, MISTRAL, [*b"Well. ", 257, *body.replace(b"1", b"x")])


@syntaxes
async def test_an_answer_that_calls_nothing_follows_its_own_schema(syntax: CallSyntax) -> None:
    use = ToolUse((ADD,), (ADD,))
    assert await is_allowed(use, syntax, CALL[syntax], {"enum": ["x"]})
    assert await is_allowed(use, syntax, '"x"', {"enum": ["x"]})
    assert not await is_allowed(use, syntax, "No need.", {"enum": ["x"]})


@pytest.mark.parametrize("strict", [True, False])
async def test_a_schema_that_cannot_be_held_is_refused_only_where_it_is_strict(strict: bool) -> None:
    model = served_model(FakePipeline(b""))
    compiler = GrammarCompiler(model.tokenizer, 300, (256, 258))
    odd = Tool("odd", "", {"type": "object", "properties": {"a": {"not": {"const": 1}}}}, is_strict=strict)
    lark = call_grammar(ToolUse((odd,), (odd,), must_call=True), HERMES, lambda _: None, SCHEMA_OPTIONS)
    if strict:
        with pytest.raises(RequestRefused):
            await compiler.compile_lark(lark, "tools")
    else:
        assert json.dumps("odd") in lark.replace("\\", "")
        await compiler.compile_lark(lark, "tools")
