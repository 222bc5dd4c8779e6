"""Calls are found in every family's syntax, however the text is cut; what is no call is text, and none is lost."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.tools.reading import CallArguments, CallBegun, CallReader
from coordinator.tools.syntax import GENERIC, HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, CallSyntax

NAMES = ("weather", "add")


def read(
    syntax: CallSyntax, text: str, cuts: list[int] = (), **options: bool
) -> tuple[str, list[tuple[str, str]]]:
    """The text and the calls; never an empty piece."""
    reader = CallReader(syntax, NAMES, **options)
    places = [0, *sorted({cut for cut in cuts if cut < len(text)}), len(text)]
    pieces = [piece for start, stop in pairwise(places) for piece in reader.push(text[start:stop])]
    said, calls = "", []
    for piece in [*pieces, *reader.flush()]:
        match piece:
            case CallBegun():
                calls.append((piece.name, ""))
            case CallArguments():
                assert piece.text
                calls[-1] = (calls[-1][0], calls[-1][1] + piece.text)
            case _:
                assert piece
                said += piece
    return said, calls


ARGUMENTS = '{"city": "a } \\" ] </tool_call> \\\\", "days": [1, {"x": null}]}'
CALL = ("weather", ARGUMENTS)
ADD = ("add", "{}")

WRITTEN = {
    "hermes": (HERMES, f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>', "", [CALL]),
    "generic": (GENERIC, f'<tool_call>{{"name": "weather", "arguments": {ARGUMENTS}}}</tool_call>', "", [CALL]),
    "text before": (HERMES, f'Let me see.\n<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>\n', "Let me see.", [CALL]),
    "two": (HERMES, '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>\n<tool_call>\n'
            f'{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>', "", [ADD, CALL]),
    "a list": (HERMES, f'<tool_call>[{{"name": "add", "arguments": {{}}}}, {{"name": "weather", "arguments": {ARGUMENTS}}}]</tool_call>', "", [ADD, CALL]),
    "text after": (HERMES, '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>\nDone.', "\nDone.", [ADD]),
    "other order": (HERMES, '<tool_call>{"arguments": {}, "name": "add"}</tool_call>', "", [ADD]),
    "arguments as text": (HERMES, '<tool_call>{"name": "add", "arguments": "{}"}</tool_call>', "", [ADD]),
    "no arguments": (HERMES, '<tool_call>{"name": "add"}</tool_call>', "", [ADD]),
    "unclosed": (HERMES, '<tool_call>{"name": "add", "arguments": {}}', "", [ADD]),
    "more fields": (HERMES, '<tool_call>{"name": "add", "arguments": {}, "id": "}"}</tool_call>', "", [ADD]),
    "unknown between marks": (HERMES, '<tool_call>{"name": "fly", "arguments": {}}</tool_call>', "", [("fly", "{}")]),
    "no call": (HERMES, "<tool_call>I would rather not</tool_call>", "<tool_call>I would rather not</tool_call>", []),
    "no call, then one": (HERMES, '<tool_call>hm<tool_call>{"name": "add", "arguments": {}}</tool_call>', "<tool_call>hm", [ADD]),
    "no JSON": (HERMES, '<tool_call>{"name": add}</tool_call>', '<tool_call>{"name": add}</tool_call>', []),
    "begins as a mark": (HERMES, "a <tool and <tool_c", "a <tool and <tool_c", []),
    "llama": (LLAMA3, f'{{"name": "weather", "parameters": {ARGUMENTS}}}', "", [CALL]),
    "llama with a type": (LLAMA3, f'{{"type": "function", "name": "weather", "parameters": {ARGUMENTS}}}', "", [CALL]),
    "llama with its tag": (LLAMA3, f'<|python_tag|>{{"name": "weather", "parameters": {ARGUMENTS}}}', "", [CALL]),
    "llama twice": (LLAMA3, f'{{"name": "add", "parameters": {{}}}}; {{"name": "weather", "parameters": {ARGUMENTS}}}', "", [ADD, CALL]),
    "llama's unknown is an answer": (LLAMA3, '{"name": "Ann", "parameters": {"age": 3}}', '{"name": "Ann", "parameters": {"age": 3}}', []),
    "llama answers JSON": (LLAMA3, ' {"answer": 3}', ' {"answer": 3}', []),
    "llama's code": (LLAMA3, "<|python_tag|>print(1)", "print(1)", []),
    "mistral": (MISTRAL, f'[TOOL_CALLS] [{{"name": "weather", "arguments": {ARGUMENTS}}}]', "", [CALL]),
    "mistral twice": (MISTRAL, f'[TOOL_CALLS][{{"name": "add", "arguments": {{}}, "id": "abcdefghi"}}, {{"name": "weather", "arguments": {ARGUMENTS}}}]', "", [ADD, CALL]),
    "mistral by name": (MISTRAL_ARGS, f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}[TOOL_CALLS]add[ARGS]{{}}", "", [CALL, ADD]),
    "mistral with an id": (MISTRAL_ARGS, f"Well.[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{ARGUMENTS}", "Well.", [CALL]),
    "mistral talks": (MISTRAL, "[TOOL_CALLS] is a token", "[TOOL_CALLS] is a token", []),
}  # fmt: skip


@pytest.mark.parametrize(("syntax", "text", "said", "calls"), WRITTEN.values(), ids=WRITTEN.keys())
def test_calls_are_found_whole_and_cut_at_every_place(
    syntax: CallSyntax, text: str, said: str, calls: list[tuple[str, str]]
) -> None:
    assert read(syntax, text) == (said, calls)
    assert read(syntax, text, list(range(len(text)))) == (said, calls)
    for cut in range(len(text)):
        assert read(syntax, text, [cut]) == (said, calls), text[:cut]


@given(st.data())
def test_arguments_are_those_that_were_written_however_the_text_is_cut(data: st.DataObject) -> None:
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
    arguments = json.dumps(
        data.draw(st.dictionaries(st.text(), values, max_size=3)), ensure_ascii=data.draw(st.booleans())
    )
    written = {
        HERMES: f'<tool_call>\n{{"name": "add", "arguments": {arguments}}}\n</tool_call>',
        LLAMA3: f'{{"name": "add", "parameters": {arguments}}}',
        MISTRAL: f'[TOOL_CALLS][{{"name": "add", "arguments": {arguments}}}]',
        MISTRAL_ARGS: f"[TOOL_CALLS]add[ARGS]{arguments}",
    }
    for syntax, text in written.items():
        cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
        assert read(syntax, text, cuts) == ("", [("add", arguments)])


@given(st.text('<tool_ca>{}[]"name:\\ weathr|pyTOLCALS,;'), st.lists(st.integers(0, 60), max_size=8))
def test_nothing_that_is_said_without_a_call_is_lost_or_depends_on_the_cuts(
    text: str, cuts: list[int]
) -> None:
    for syntax in (HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS):
        said, calls = read(syntax, text)
        assert read(syntax, text, cuts) == (said, calls)
        if not calls and syntax.opener not in text:
            assert said == text


def test_arguments_leave_as_they_come() -> None:
    reader = CallReader(HERMES, NAMES)
    assert reader.push('<tool_call>\n{"name": "add", "arguments": {"a"') == [
        CallBegun("add"),
        CallArguments('{"a"'),
    ]
    assert reader.push(": 1") == [CallArguments(": 1")]


def test_an_answer_in_json_does_not_wait_for_its_end() -> None:
    assert CallReader(LLAMA3, NAMES).push('{"answer": "long') == ['{"answer": "long']


def test_a_call_that_was_cut_off_keeps_what_there_is() -> None:
    assert read(HERMES, '<tool_call>\n{"name": "add", "arguments": {"a": "un') == ("", [("add", '{"a": "un')])
    assert read(HERMES, '<tool_call>\n{"name": "ad') == ('<tool_call>\n{"name": "ad', [])


def test_of_calls_that_may_not_be_parallel_the_first_is_told() -> None:
    text = '<tool_call>{"name": "add", "arguments": {}}</tool_call><tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    assert read(HERMES, text, is_parallel=False) == ("", [ADD])
