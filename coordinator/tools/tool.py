"""What a client offers the model to call, and whether it must."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tool:
    """A function of the client's. The model only names it; whoever asked runs it."""

    name: str
    description: str
    parameters: Mapping[str, Any]  # JSON schema of its arguments
    is_strict: bool = False  # the schema holds even where the model is free not to call
    param: str = "tools"  # the field of the request that a complaint about the schema names

    def to_json(self) -> dict[str, Any]:
        """As chat templates read it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of one request."""

    tools: tuple[Tool, ...] = ()  # that the model is told of
    callable: tuple[Tool, ...] = ()  # that it may call
    must_call: bool = False
    is_parallel: bool = True  # several calls in one answer

    def __post_init__(self) -> None:
        assert self.callable or not self.must_call, "a call that must be made needs a tool"

    @property
    def is_held(self) -> bool:
        """The answer has to follow a grammar."""
        return self.must_call or any(tool.is_strict for tool in self.callable)


NO_TOOLS = ToolUse()


def parsed_arguments(arguments: str) -> Any:
    """As templates read them: an object where the text is one, else the text."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments
