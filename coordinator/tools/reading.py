"""Finds the calls in what a model says, however it arrives in pieces.

Text that could begin a call is held back until it is known not to; a call's arguments leave as they come, once its name is
known. What looked like a call and is none is given out as the text that it is: nothing a model says is lost. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass

from coordinator.tools.json_end import JsonEnd
from coordinator.tools.syntax import CallSyntax


@dataclass(frozen=True, slots=True)
class CallBegun:
    """Of the calls of an answer, the next."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments, as JSON text, of the call that began last."""

    text: str


Piece = str | CallBegun | CallArguments

# The usual order, in which arguments can leave as they come. Any other waits for the end of the object.
_HEAD = re.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
# What such an object may begin with; another first key is an answer's, which must not wait for its end.
_FIRST_KEY = re.compile(
    r'\s*\{\s*(?:"(?:(?:[^"\\]|\\.)*$|(?:name|type|function|id|arguments|parameters)")|$)'
)
_NAME = re.compile(r"\s*([A-Za-z0-9_.-]{1,256})\s*(?=[\[{])")
_CALL_ID = re.compile(r"\[CALL_ID\]\s*[A-Za-z0-9]*\s*")
MAX_HELD_CHARACTERS = 1 << 14  # of what could begin a call and has not said its name


class CallReader:
    """``push`` the pieces of one answer, then ``flush``."""

    def __init__(self, syntax: CallSyntax, names: Collection[str], *, is_parallel: bool = True) -> None:
        self._syntax, self._names, self._is_parallel = syntax, frozenset(names), is_parallel
        self._state = self._begin if syntax.is_bare else self._say
        self._held = ""
        self._in_list = False  # Mistral's calls, and those that some fine-tunes of others write
        self._raw = ""  # of a call that may turn out to be none
        self._end = JsonEnd()
        self._skipping: JsonEnd | None = None  # finds the end of the object around the arguments
        self._pieces: list[Piece] = []
        self._is_told = True  # the call under way is given out; False where a second one is not wanted
        self.calls = 0

    def push(self, text: str) -> list[Piece]:
        self._held += text
        while self._state():
            pass
        return self._take()

    def flush(self) -> list[Piece]:
        """The answer has ended: what was held back began no call, or a call that was cut off."""
        if self._state not in (self._arguments, self._skip, self._after):
            text = self._raw + self._held
            self._give_text(text if text.strip() or not self.calls else "")
        self._held = self._raw = ""
        return self._take()

    # -- states: each takes what it can from what is held; True: go on at once, False: wait for more

    def _begin(self) -> bool:
        """The beginning of an answer that may be a call without an opener."""
        first = self._held.lstrip()
        if not first:
            return False
        self._state = self._object if first[0] == "{" else self._say
        return True

    def _say(self) -> bool:
        opener = self._syntax.opener
        text, found, rest = self._held.partition(opener)
        if found:
            self._give_text(text.rstrip())  # white space before a call is the call's
            self._held, self._raw, self._state = rest, opener, self._body
            return True
        shown = self._held[: len(self._held) - _longest_beginning(self._held, opener)].rstrip()
        self._give_text(shown)
        self._held = self._held[len(shown) :]
        return False

    def _body(self) -> bool:
        """After an opener: an object, a list of them, or a name."""
        first = self._held.lstrip()
        if not first:
            return False
        if first[0] == "{":
            self._state = self._object
        elif first[0] == "[" and not self._in_list:
            skipped = self._held.index("[") + 1
            self._raw, self._held = self._raw + self._held[:skipped], self._held[skipped:]
            self._in_list = True
        elif self._syntax.arguments_mark or self._syntax.is_list:
            self._state = self._name
        else:
            return self._fail()
        return True

    def _name(self) -> bool:
        """``name[ARGS]{…}``"""
        if not (match := _NAME.match(self._held)):
            if re.fullmatch(r"\s*[A-Za-z0-9_.-]{0,256}\s*", self._held):
                return False
            return self._fail()
        rest = self._held[match.end() :]
        if rest.startswith("[") and "{" not in rest and len(rest) < 64:
            return False  # the marks are not whole yet
        rest = _CALL_ID.sub("", rest, count=1).removeprefix("[ARGS]").lstrip()
        if rest and rest[0] != "{":
            return self._fail()
        if not rest:
            return False
        self._begin_call(match[1], rest)
        return True

    def _object(self) -> bool:
        """``{"name": …, "arguments": {…}}`` until its name is known."""
        if (match := _HEAD.match(self._held)) and self._is_tool(name := str(json.loads(match[1]))):
            self._begin_call(name, self._held[match.end() :])
            # What the object says after its arguments is not told.
            self._skipping = JsonEnd(depth=1)
            return True
        end = JsonEnd().push(self._held)
        if end is None:
            may_be = _FIRST_KEY.match(self._held) and len(self._held) < MAX_HELD_CHARACTERS
            return False if may_be else self._fail()
        call = _whole_call(self._held[:end])
        if call is None or not self._is_tool(call[0]):
            return self._fail()
        self._held = self._held[end:]
        self._tell(CallBegun(call[0]))
        self._give_arguments(call[1])
        self._raw, self._state = "", self._after
        return True

    def _arguments(self) -> bool:
        end = self._end.push(self._held)
        self._give_arguments(self._held[:end])
        self._held = "" if end is None else self._held[end:]
        if end is None:
            return False
        self._state = self._skip
        return True

    def _skip(self) -> bool:
        """To the end of the object around the arguments, if there is one."""
        if self._skipping is not None:
            end = self._skipping.push(self._held)
            self._held = "" if end is None else self._held[end:]
            if end is None:
                return False
        self._state = self._after
        return True

    def _after(self) -> bool:
        """Behind a call: what closes it, then another one or text."""
        syntax = self._syntax
        has_more = syntax.is_bare or self._in_list
        rest = self._held.lstrip(" \t\r\n,;]" if has_more else None)
        for mark in (syntax.closer, syntax.opener):
            if mark and rest.startswith(mark):
                self._held = rest[len(mark) :]
                self._raw, self._state = (mark, self._body) if mark == syntax.opener else ("", self._say)
                self._in_list = False
                return True
            if mark and rest and mark.startswith(rest):
                return False
        if not rest:
            return False
        if rest[0] == "{" and has_more:
            self._held, self._state = rest, self._object
        else:
            self._in_list, self._state = False, self._say
        return True

    # -- what the states do

    def _begin_call(self, name: str, rest: str) -> None:
        self._tell(CallBegun(name))
        self._held, self._raw, self._state = rest, "", self._arguments
        self._end, self._skipping = JsonEnd(), None

    def _fail(self) -> bool:
        """It was no call, but perhaps there is one in the text behind its mark."""
        if not self._syntax.is_bare:  # its opener is a name for a token that is no text
            self._give_text(self._raw)
        self._raw, self._in_list, self._state = "", False, self._say
        return True

    def _is_tool(self, name: str) -> bool:
        """Between marks a call is a call, and whoever asked says that there is no such tool; bare JSON is perhaps an answer."""
        return not self._syntax.is_bare or name in self._names

    def _tell(self, call: CallBegun) -> None:
        self._is_told = self._is_parallel or self.calls == 0
        if self._is_told:
            self.calls += 1
            self._pieces.append(call)

    def _give_arguments(self, text: str) -> None:
        if text and self._is_told:
            self._pieces.append(CallArguments(text))

    def _give_text(self, text: str) -> None:
        if text:
            self._pieces.append(text)

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces


def _whole_call(text: str) -> tuple[str, str] | None:
    """Name and arguments of an object that is a call."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return value["name"], arguments if isinstance(arguments, str) else json.dumps(arguments)


def _longest_beginning(text: str, mark: str) -> int:
    """Length of the longest end of ``text`` that begins ``mark``."""
    lengths = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(mark[:length])), 0)
