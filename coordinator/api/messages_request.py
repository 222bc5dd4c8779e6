"""A request of Anthropic's Messages dialect.

Blocks become messages: results of tools come before the text beside them, the model's earlier thinking is left out, and so
are tools that only Anthropic's servers run. ``max_tokens`` is cut to what the context leaves: clients must send one, and send
that of a model with a larger context.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from coordinator.api.constraint import Constraint, constraint_of
from coordinator.api.conversation import Conversation, merge_leading_systems
from coordinator.api.fields import MAX_STOP_STRINGS, AnswerFields, Lenient, StopString, Text
from coordinator.api.tool_fields import MAX_TOOLS, ToolName, make_tool, tool_use
from coordinator.tools.history import Message
from coordinator.tools.tool import ToolUse
from mesh.errors import RequestRefused

_LEFT_OUT = frozenset({"thinking", "redacted_thinking"})


def _as_blocks(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class TextBlock(Lenient):
    type: str
    text: Text | None = None


TextBlocks = Annotated[
    list[TextBlock] | None, BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock] | None)
]


class Block(Lenient):
    """Any block; which fields it needs, its type says."""

    type: str
    text: Text | None = None
    id: Text | None = None
    name: ToolName | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Text | None = None
    content: TextBlocks = None


class MessageField(Lenient):
    role: Literal["user", "assistant", "system"]
    content: Annotated[list[Block], BeforeValidator(_as_blocks, json_schema_input_type=str | list[Block])]


class MessagesTool(Lenient):
    name: ToolName | None = None
    type: str | None = None
    description: Text | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class MessagesToolChoice(Lenient):
    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(Lenient):
    type: str
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class OutputConfig(Lenient):
    format: OutputFormat | None = None


class CountRequest(AnswerFields):
    """What the tokens of are counted."""

    messages: list[MessageField]
    system: TextBlocks = None
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    tools: Annotated[list[MessagesTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: MessagesToolChoice | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = Field(None, description="The older place of output_config.format.")

    def to_conversation(self, vocab_size: int) -> Conversation:
        """Raises RequestRefused for what the types cannot say."""
        self.check(vocab_size)
        self.check_single()
        messages = [message for index, each in enumerate(self.messages) for message in _messages(each, index)]
        if not messages:
            raise RequestRefused("messages: at least one message is required", param="messages")
        if self.system:
            messages.insert(0, {"role": "system", "content": _text(self.system, "system")})
        # A last message of the assistant is the beginning of the answer.
        is_open = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
        return Conversation(
            merge_leading_systems(messages),
            self._tool_use(),
            constraint_of(self, *self._format()),
            is_open=is_open,
        )

    def _format(self) -> Iterator[Constraint]:
        places = {
            "output_config.format": None if self.output_config is None else self.output_config.format,
            "output_format": self.output_format,
        }
        for place, wanted in places.items():
            if wanted is None:
                continue
            if wanted.type != "json_schema" or wanted.schema_ is None:
                raise RequestRefused(f"{place}: expected a json_schema with its schema", param=place)
            yield Constraint("schema", wanted.schema_, f"{place}.schema")

    def _tool_use(self) -> ToolUse:
        tools = []
        for index, tool in enumerate(self.tools or ()):
            if tool.type not in (None, "custom"):
                continue
            param = f"tools[{index}]"
            if tool.name is None:
                raise RequestRefused(f"{param}.name: Field required", param=f"{param}.name")
            schema = tool.input_schema
            tools.append(make_tool(tool.name, tool.description, schema, tool.strict, f"{param}.input_schema"))
        asked = self.tool_choice
        if asked is None:
            return tool_use(tools, None, is_parallel=True)
        choice = {"any": "required", "tool": asked.name or ""}.get(asked.type, asked.type)
        return tool_use(tools, choice, is_parallel=not asked.disable_parallel_tool_use)


class MessagesRequest(CountRequest):
    max_tokens: Annotated[int, Field(ge=1)]


def _messages(message: MessageField, index: int) -> Iterator[Message]:
    """A message's results, each for itself, then its text and calls."""
    texts, calls = [], []
    for number, block in enumerate(message.content):
        where = f"messages[{index}].content[{number}]"
        match block.type:
            case "text" if block.text is not None:
                texts.append(block.text)
            case "tool_use" if (
                block.id is not None and block.name is not None and message.role == "assistant"
            ):
                arguments = json.dumps(block.input or {}, ensure_ascii=False)
                function = {"name": block.name, "arguments": arguments}
                calls.append({"id": block.id, "type": "function", "function": function})
            case "tool_result" if block.tool_use_id is not None and message.role == "user":
                content = _text(block.content or [], f"{where}.content")
                yield {"role": "tool", "content": content, "tool_call_id": block.tool_use_id}
            case kind if kind not in _LEFT_OUT:
                raise RequestRefused(
                    f"{where}: a block of type {kind[:40]!r} is not supported here, or lacks a field; "
                    "expected text, the assistant's tool_use or the user's tool_result",
                    code="unsupported_parameter",
                    param=where,
                )
    if texts or calls or not message.content:
        told: Message = {"role": message.role, "content": "\n".join(texts)}
        yield {**told, "tool_calls": calls} if calls else told


def _text(blocks: Sequence[TextBlock], where: str) -> str:
    for index, block in enumerate(blocks):
        if block.type != "text" or block.text is None:
            raise RequestRefused(
                f"{where}: a block of type {block.type[:40]!r} is not supported; expected text",
                code="unsupported_parameter",
                param=f"{where}[{index}]",
            )
    return "\n".join(block.text or "" for block in blocks)
