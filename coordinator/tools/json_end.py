"""Where a JSON object or list ends in text that arrives in pieces. Whether it is valid, whoever reads it will see."""

from __future__ import annotations

import re

_NOTABLE = re.compile(r'["\\{}\[\]]')


class JsonEnd:
    """``depth``: how many objects and lists are open already."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        self._escaped = False

    def push(self, text: str) -> int | None:
        """The index in this piece behind the end; None if it is not reached."""
        place = 0
        if self._escaped and text:
            self._escaped, place = False, 1
        while match := _NOTABLE.search(text, place):
            char, place = match[0], match.end()
            if self._in_string:
                if char == '"':
                    self._in_string = False
                elif char == "\\":
                    if place == len(text):
                        self._escaped = True
                    place += 1
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return place
        return None
