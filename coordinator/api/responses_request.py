"""A request of OpenAI's Responses dialect, stateless: nothing is stored, so nothing earlier can be referred to.

Items of ``input`` become messages: calls join the assistant's message before them, the model's earlier reasoning is left
out. Tools that the server itself would run (web search, code) are left out, too: clients offer them unasked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field

from coordinator.api.constraint import Constraint, constraint_of
from coordinator.api.conversation import Conversation, merge_leading_systems
from coordinator.api.fields import AnswerFields, Lenient, Text
from coordinator.api.tool_fields import MAX_TOOLS, ToolName, make_tool, tool_use
from coordinator.tools.history import Message
from coordinator.tools.tool import Tool, ToolUse
from mesh.errors import RequestRefused
from mesh.model.sampling import MAX_TOP_LOGPROBS

T = TypeVar("T")

LOGPROBS = "message.output_text.logprobs"  # of ``include``
_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})
_LEFT_OUT = frozenset({"reasoning", "web_search_call", "compaction"})  # items that a model does not read
_CUSTOM_INPUT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
# Only for a server that remembers, or that trims: name -> values that ask for nothing.
_STATEFUL: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "background": (False,),
    "truncation": ("disabled",),
}


def _as_items(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _as_parts(value: object) -> object:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


class Part(Lenient):
    type: str
    text: Text | None = None
    refusal: Text | None = None


Parts = Annotated[
    list[Part] | None, BeforeValidator(_as_parts, json_schema_input_type=str | list[Part] | None)
]


class Item(Lenient):
    """Any item; which fields it needs, its type says."""

    type: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Parts = None
    call_id: Text | None = None
    name: ToolName | None = None
    arguments: Text | None = None
    input: Text | None = None
    output: Parts = None


class ResponseTool(Lenient):
    type: str
    name: ToolName | None = None
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(Lenient):
    type: Literal["text", "json_object", "json_schema"]
    name: Text | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class TextConfig(Lenient):
    format: TextFormat | None = None


class ResponsesRequest(AnswerFields):
    input: Annotated[list[Item], BeforeValidator(_as_items, json_schema_input_type=str | list[Item])]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None

    @property
    def logprobs(self) -> int | None:
        """How many of each place, if they were asked for."""
        is_asked = LOGPROBS in (self.include or ()) or self.top_logprobs
        return (self.top_logprobs or 0) if is_asked else None

    @property
    def custom_names(self) -> frozenset[str]:
        """Tools that take free text."""
        return frozenset(tool.name for tool in self.tools or () if tool.type == "custom" and tool.name)

    def to_conversation(self, vocab_size: int) -> Conversation:
        """Raises RequestRefused for what the types cannot say."""
        self.check(vocab_size)
        self.check_single()
        for name, harmless in _STATEFUL.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value not in harmless:
                raise RequestRefused(
                    f"{name} is not supported by this mesh, which keeps nothing; send the whole input",
                    code="unsupported_parameter",
                    param=name,
                )
        messages = list(_messages(self.input))
        if not messages:
            raise RequestRefused("input is empty; expected at least one message", param="input")
        if self.instructions:
            messages.insert(0, {"role": "system", "content": self.instructions})
        return Conversation(
            merge_leading_systems(messages),
            self._tool_use(),
            constraint_of(self, *self._format()),
            param="input",
        )

    def _format(self) -> Iterator[Constraint]:
        wanted = self.text.format if self.text else None
        if wanted is None or wanted.type == "text":
            return
        if wanted.type == "json_object":
            yield Constraint("schema", {"type": "object"}, "text.format")
        elif wanted.schema_ is None:
            raise RequestRefused("text.format.schema is missing", param="text.format.schema")
        else:
            yield Constraint("schema", wanted.schema_, "text.format.schema")

    def _tool_use(self) -> ToolUse:
        tools = [
            tool for index, each in enumerate(self.tools or ()) if (tool := _tool(each, f"tools[{index}]"))
        ]
        choice, is_parallel = self.tool_choice, self.parallel_tool_calls is not False
        match choice:
            case {"type": "function" | "custom", "name": str(name)}:
                return tool_use(tools, name, is_parallel)
            case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": list(allowed)}:
                names = [each.get("name") for each in allowed if isinstance(each, dict)]
                return tool_use(tools, mode, is_parallel, allowed=names)
            case _:
                return tool_use(tools, choice, is_parallel)


def _tool(tool: ResponseTool, param: str) -> Tool | None:
    if tool.type not in ("function", "custom"):
        return None
    if tool.name is None:
        raise RequestRefused(f"{param}.name is missing", param=f"{param}.name")
    if tool.type == "custom":
        return make_tool(tool.name, tool.description, _CUSTOM_INPUT, None, param)
    return make_tool(tool.name, tool.description, tool.parameters, tool.strict, f"{param}.parameters")


def _messages(items: Sequence[Item]) -> Iterator[Message]:
    """Calls wait for the assistant's message that they belong to: the one before them, or an empty one."""
    assistant: Message | None = None
    for index, item in enumerate(items):
        where = f"input[{index}]"
        kind = item.type or "message"
        if kind in _LEFT_OUT:
            continue
        if kind in ("function_call", "custom_tool_call"):
            assistant = assistant or {"role": "assistant", "content": ""}
            assistant["tool_calls"] = [*assistant.get("tool_calls", ()), _call(item, where)]
            continue
        if assistant is not None:
            yield assistant
            assistant = None
        if kind in ("function_call_output", "custom_tool_call_output"):
            call_id = _needed(item.call_id, f"{where}.call_id")
            content = _text(_needed(item.output, f"{where}.output"), f"{where}.output")
            yield {"role": "tool", "content": content, "tool_call_id": call_id}
        elif kind == "message":
            role = _needed(item.role, f"{where}.role")
            content = _text(_needed(item.content, f"{where}.content"), f"{where}.content")
            told = {"role": "system" if role == "developer" else role, "content": content}
            if role == "assistant":
                assistant = told
            else:
                yield told
        else:
            raise RequestRefused(
                f"{where}: an item of type {kind[:40]!r} is not supported",
                code="unsupported_parameter",
                param=f"{where}.type",
            )
    if assistant is not None:
        yield assistant


def _call(item: Item, where: str) -> dict[str, Any]:
    name = _needed(item.name, f"{where}.name")
    if item.type == "custom_tool_call":
        arguments = json.dumps({"input": _needed(item.input, f"{where}.input")}, ensure_ascii=False)
    else:
        arguments = _needed(item.arguments, f"{where}.arguments")
    call_id = _needed(item.call_id, f"{where}.call_id")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _needed(value: T | None, param: str) -> T:
    if value is None:
        raise RequestRefused(f"{param} is missing", param=param)
    return value


def _text(parts: Sequence[Part], where: str) -> str:
    texts = []
    for index, part in enumerate(parts):
        text = part.refusal if part.type == "refusal" else part.text if part.type in _TEXT_PARTS else None
        if text is None:
            raise RequestRefused(
                f"{where}: content of type {part.type[:40]!r} is not supported; expected text",
                code="unsupported_parameter",
                param=f"{where}[{index}]",
            )
        texts.append(text)
    return "\n".join(texts)
