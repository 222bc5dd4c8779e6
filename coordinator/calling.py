"""Events of an answer in which calls are read out of the text: what the dialects tell as tool calls."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing

from coordinator.generation import CallEvent, Event, FinishEvent, ScoredToken, TextEvent
from coordinator.tools.reading import CallArguments, CallBegun, CallReader, Piece


async def with_calls(
    events: AsyncGenerator[Event, None], new_reader: Callable[[], CallReader]
) -> AsyncGenerator[Event, None]:
    """The same events, with CallEvents in place of the text of calls; each choice has a reader of its own."""
    choices: dict[int, _Choice] = {}
    async with aclosing(events):
        async for event in events:
            choice = choices.setdefault(event.choice, _Choice(event.choice, new_reader()))
            for told in choice.tell(event):
                yield told


def whole_calls(events: Iterable[Event], choice: int = 0) -> list[CallEvent]:
    """The calls of an answer, each put together."""
    calls: list[CallEvent] = []
    for event in events:
        if isinstance(event, CallEvent) and event.choice == choice:
            if event.id is not None:
                calls.append(event)
            else:
                calls[-1] = dataclasses.replace(calls[-1], arguments=calls[-1].arguments + event.arguments)
    return calls


class _Choice:
    def __init__(self, choice: int, reader: CallReader) -> None:
        self._choice, self._reader = choice, reader
        self._calls = 0
        self._tokens: list[ScoredToken] = []  # their text is not given out yet
        self._ids: list[int] = []

    def tell(self, event: Event) -> list[Event]:
        match event:
            case TextEvent():
                self._tokens += event.tokens
                self._ids += event.ids
                return [self._event(piece) for piece in self._reader.push(event.text)]
            case FinishEvent():
                told: list[Event] = [self._event(piece) for piece in self._reader.flush()]
                if self._ids or (self._tokens and not self._calls):
                    told.append(self._text(""))
                is_call = self._calls and event.reason == "stop"
                return [*told, dataclasses.replace(event, reason="tool_calls") if is_call else event]
            case _:
                return [event]

    def _event(self, piece: Piece) -> Event:
        match piece:
            case CallBegun():
                # How likely the tokens of a call were, no dialect tells.
                self._tokens.clear()
                self._calls += 1
                call_id = f"call_{uuid.uuid4().hex[:24]}"
                return CallEvent(self._calls - 1, id=call_id, name=piece.name, choice=self._choice)
            case CallArguments():
                self._tokens.clear()
                return CallEvent(self._calls - 1, piece.text, choice=self._choice)
            case _:
                return self._text(piece)

    def _text(self, text: str) -> TextEvent:
        tokens, self._tokens = tuple(self._tokens), []
        ids, self._ids = tuple(self._ids), []
        return TextEvent(text, tokens, self._choice, ids)
