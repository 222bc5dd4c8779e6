"""Tools as OpenAI's chat spells them; the other dialects make the same ``ToolUse`` of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from coordinator.api.fields import Lenient, Text
from coordinator.tools.tool import NO_TOOLS, Tool, ToolUse
from mesh.errors import RequestRefused

MAX_TOOLS = 512  # OpenAI allows 128; agents with many servers send more
ToolName = Annotated[Text, Field(pattern=r"^[A-Za-z0-9_.:-]{1,256}$")]


class FunctionField(Lenient):
    name: ToolName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def to_tool(self, param: str) -> Tool:
        return make_tool(self.name, self.description, self.parameters, self.strict, f"{param}.parameters")


class ToolField(Lenient):
    type: str
    function: FunctionField | None = None


class CalledFunction(Lenient):
    name: ToolName
    arguments: Text


class ToolCallField(Lenient):
    """A call that the model made earlier."""

    id: Text
    type: str | None = None
    function: CalledFunction

    def to_json(self) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": "function", "function": function}


def make_tool(
    name: str, description: str | None, schema: dict[str, Any] | None, strict: bool | None, param: str
) -> Tool:
    if schema is not None and schema.get("type", "object") != "object":
        raise RequestRefused(f"{param}: expected a schema of type object", param=param)
    # Templates look for properties even where there are none.
    parameters = {"type": "object", "properties": {}, **(schema or {})}
    return Tool(name, description or "", parameters, bool(strict), param)


def chat_tools(tools: Sequence[ToolField], choice: object, is_parallel: bool) -> ToolUse:
    """Raises RequestRefused for tools that are no functions, and for choices of none of them."""
    made = []
    for index, tool in enumerate(tools):
        param = f"tools[{index}]"
        if tool.type != "function" or tool.function is None:
            raise RequestRefused(
                f"{param}: type {tool.type[:40]!r} is not supported; expected a function",
                code="unsupported_parameter",
                param=f"{param}.type",
            )
        made.append(tool.function.to_tool(f"{param}.function"))
    match choice:
        case {"type": "function", "function": {"name": str(name)}}:
            return tool_use(made, name, is_parallel)
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto" | "required" as mode, "tools": list(allowed)},
        }:
            functions = [each.get("function") for each in allowed if isinstance(each, dict)]
            names = [each.get("name") for each in functions if isinstance(each, dict)]
            return tool_use(made, mode, is_parallel, allowed=names)
        case _:
            return tool_use(made, choice, is_parallel)


def tool_use(
    tools: Sequence[Tool],
    choice: object,
    is_parallel: bool,
    *,
    allowed: Sequence[object] | None = None,
    param: str = "tool_choice",
) -> ToolUse:
    """``choice``: none, auto, required, or the name of the tool to call. Raises RequestRefused."""
    if len(names := {tool.name for tool in tools}) < len(tools):
        raise RequestRefused("tools: two have the same name", param="tools")
    if choice is None or choice == "auto":
        must_call, callable_ = False, tuple(tools)
    elif choice == "none":
        return NO_TOOLS
    elif choice == "required":
        must_call, callable_ = True, tuple(tools)
    elif isinstance(choice, str) and choice in names:
        must_call, callable_ = True, tuple(tool for tool in tools if tool.name == choice)
    else:
        raise RequestRefused(
            f"{param}: expected none, auto, required or one of the tools: {', '.join(sorted(names)) or 'there are none'}",
            param=param,
        )
    if allowed is not None:
        callable_ = tuple(tool for tool in callable_ if tool.name in allowed)
    if must_call and not callable_:
        raise RequestRefused(f"{param}: a call is required, but there is no tool to call", param=param)
    return ToolUse(tuple(tools), callable_, must_call, is_parallel)
