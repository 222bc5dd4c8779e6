"""What every dialect of a conversation comes down to, and how it becomes a prompt, a grammar and a reader of calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coordinator.api.constraint import Constraint, compile_constraint
from coordinator.api.fields import AnswerFields, hold_longer
from coordinator.generation import GenerationRequest, TokenIds
from coordinator.grammar import SCHEMA_OPTIONS, GrammarCompiler
from coordinator.serving import ServedModel
from coordinator.token_pipeline import MaskSource
from coordinator.tools.calls import call_grammar
from coordinator.tools.history import Message, for_template
from coordinator.tools.reading import CallReader
from coordinator.tools.syntax import CallSyntax, syntax_of
from coordinator.tools.tool import NO_TOOLS, ToolUse
from mesh.errors import RequestRefused


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in the shape of OpenAI's chat, with text alone as content."""

    messages: Sequence[Message]
    use: ToolUse = NO_TOOLS
    constraint: Constraint | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)  # of the chat template
    add_generation_prompt: bool = True
    is_open: bool = False  # the last message is to be continued
    param: str = "messages"  # what the client calls them


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the model gets to read, and how its answer is to be read."""

    prompt: TokenIds
    param: str
    grammar: MaskSource | None = None
    shown: frozenset[int] = frozenset()  # special tokens that the reader has to see
    new_reader: Callable[[], CallReader] | None = None


def merge_leading_systems(messages: Sequence[Message]) -> list[Message]:
    """Several system messages at the beginning as one: many templates know only one."""
    count = next((index for index, each in enumerate(messages) if each["role"] != "system"), len(messages))
    if count < 2:
        return list(messages)
    content = "\n\n".join(each["content"] for each in messages[:count])
    return [{"role": "system", "content": content}, *messages[count:]]


async def prepare(conversation: Conversation, model: ServedModel, compiler: GrammarCompiler) -> Prepared:
    """Raises RequestRefused for messages that the template does not take and grammars that cannot be held."""
    syntax = syntax_of(model.chat_template)
    text = await asyncio.to_thread(render, conversation, model)
    prompt = tuple(await asyncio.to_thread(model.tokenizer.encode, text, add_special=False))
    grammar = await _grammar(conversation, model, syntax, compiler)
    use = conversation.use
    if not use.callable:
        return Prepared(prompt, conversation.param, grammar)
    names = [tool.name for tool in use.callable]
    ids = map(model.tokenizer.special_id, syntax.marks)
    return Prepared(
        prompt,
        conversation.param,
        grammar,
        frozenset(each for each in ids if each is not None),
        lambda: CallReader(syntax, names, is_parallel=use.is_parallel),
    )


def conversation_request(
    fields: AnswerFields,
    request_id: str,
    model: ServedModel,
    prepared: Prepared,
    *,
    max_tokens: int | None,
    top_logprobs: int | None = None,
) -> GenerationRequest:
    """Of the first choice."""
    return GenerationRequest(
        request_id=request_id,
        prompt=prepared.prompt,
        prompt_param=prepared.param,
        sampling=fields.sampling(top_logprobs),
        max_tokens=max_tokens,
        stop=tuple(fields.stop or ()),
        stop_ids=frozenset(fields.stop_token_ids or ()),
        ignore_eos=bool(fields.ignore_eos),
        min_tokens=fields.min_tokens or 0,
        shown=prepared.shown,
        tell_ids=bool(fields.return_token_ids),
        grammar=hold_longer(fields, model, prepared.grammar),
    )


def render(conversation: Conversation, model: ServedModel) -> str:
    """The prompt as text."""
    template = model.chat_template
    messages, tools = for_template(conversation.messages, conversation.use.tools, syntax_of(template))
    try:
        if conversation.is_open:
            return template.render_open(messages, tools=tools, variables=conversation.variables)
        return template.render(
            messages,
            tools=tools,
            variables=conversation.variables,
            add_generation_prompt=conversation.add_generation_prompt,
        )
    except RequestRefused as exc:
        exc.param = conversation.param
        raise


async def _grammar(
    conversation: Conversation, model: ServedModel, syntax: CallSyntax, compiler: GrammarCompiler
) -> MaskSource | None:
    use, constraint = conversation.use, conversation.constraint
    if not use.callable or (constraint is None and not use.is_held):
        return None if constraint is None else await compile_constraint(constraint, compiler)
    if constraint is not None and constraint.kind != "schema" and not use.must_call:
        raise RequestRefused(
            f"{constraint.param} with tools that the model may call: only a JSON schema goes with them",
            param=constraint.param,
        )
    if constraint is not None:
        await compile_constraint(constraint, compiler)  # a complaint names the field
    for tool in use.callable:
        if tool.is_strict:
            await compiler.compile(tool.parameters, tool.param)
    schema = None if constraint is None else constraint.value
    lark = call_grammar(use, syntax, model.tokenizer.special_id, SCHEMA_OPTIONS, schema)
    return await compiler.compile_lark(lark, "tools")
