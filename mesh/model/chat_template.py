"""Messages to prompt text, by the release's own chat template.

A template is a Jinja program that came with the weights. It is signed, and still runs in a sandbox: immutable values, no
attributes that lead out, bounded output. Its surroundings (helpers, white space rules, variables) are those of
``transformers``, for which templates are written; the tests hold the renderings equal.

Knows templates. Which roles and contents a client may send is the HTTP layer's to decide.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mesh import strict_json
from mesh.architecture import LlamaConfig
from mesh.errors import RequestRefused, ShardCorrupt
from mesh.model.tokenizer import Tokenizer
from mesh.weights.shards.shard import Shard

_MAX_PROMPT_CHARACTERS = 16 * 1024 * 1024  # more than any context holds
_MAX_CONFIG_BYTES = 64 * 1024

# For a base model that brings no template: the plainest transcript that it can continue.
_PLAIN = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)

# What a template's own code may raise when messages are not as it expects them; the sandbox's refusals are TemplateErrors.
_TEMPLATE_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        """``variables`` are what the template sees besides the messages: ``bos_token``, ``eos_token``."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
            known = meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as exc:
            reason = " ".join(str(exc).split())[:200]
            raise ShardCorrupt(
                "aux", "a readable chat template", reason, "its publisher must pack it again"
            ) from exc
        self._variables = dict(variables)
        self.source = source
        self.takes_tools = "tools" in known

    @classmethod
    def from_aux(cls, shard: Shard, tokenizer: Tokenizer) -> ChatTemplate:
        """The template of the aux shard; a plain transcript where it has none. Raises ShardCorrupt."""
        try:
            value = strict_json.loads(bytes(shard.bytes_of("config.json")), max_bytes=_MAX_CONFIG_BYTES)
            source = _PLAIN
            if "chat_template.jinja" in shard.tensors:
                source = bytes(shard.bytes_of("chat_template.jinja")).decode("utf-8")
        except (KeyError, ValueError) as exc:
            raise ShardCorrupt(
                "aux",
                "config.json and a template in UTF-8",
                str(exc)[:200],
                "its publisher must pack it again",
            ) from exc
        config = LlamaConfig.from_json(value)
        ids = {"bos_token": config.bos_token_id, "eos_token": next(iter(config.eos_token_ids), None)}
        texts = {name: tokenizer.token(id_) if id_ is not None else None for name, id_ in ids.items()}
        return cls(source, {name: text or "" for name, text in texts.items()})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt. Raises RequestRefused (param ``messages``) if the template does not take the messages.

        ``variables`` are further ones that the template knows; they cannot replace those given here.
        """
        parts: list[str] = []
        length = 0
        try:
            for part in self._template.generate(
                **self._variables
                | dict(variables or {})
                | {
                    "messages": [dict(message) for message in messages],
                    # Given, and nothing: some templates ask whether they are none, some whether they are defined.
                    "tools": [dict(tool) for tool in tools] or None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                }
            ):
                length += len(part)
                if length > _MAX_PROMPT_CHARACTERS:
                    raise RequestRefused(
                        f"messages make a prompt of more than {_MAX_PROMPT_CHARACTERS} characters",
                        param="messages",
                    )
                parts.append(part)
        except _TEMPLATE_FAILURES as exc:
            reason = " ".join(str(exc).split())[:300] or type(exc).__name__
            raise RequestRefused(
                f"the model's chat template does not take these messages: {reason}", param="messages"
            ) from exc
        return "".join(parts)

    def render_open(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt up to the end of the last message's content, which the model then continues."""
        # The content may stand anywhere in the prompt, trimmed or not; a mark that nobody can have written tells where.
        mark = secrets.token_hex(16)
        last = {**messages[-1], "content": f"{messages[-1].get('content') or ''}{mark}"}
        prompt = self.render(
            [*messages[:-1], last], tools=tools, variables=variables, add_generation_prompt=False
        )
        opened, found, _ = prompt.rpartition(mark)
        if not found:
            raise RequestRefused("the model's chat template does not show the last message", param="messages")
        return opened


class _GenerationBlock(Extension):
    """``{% generation %}…{% endgeneration %}`` marks what an assistant wrote, for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own way to declare them

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: plain JSON, not Jinja's HTML-escaped one."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
