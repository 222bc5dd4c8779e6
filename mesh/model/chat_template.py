"""Messages to prompt text, by the release's own chat template.

A template is a Jinja program that came with the weights. It is signed, and still runs in a sandbox: immutable values, no
attributes that lead out, bounded output. Its surroundings (helpers, white space rules) are those of ``transformers``, for
which templates are written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mesh.architecture import LlamaConfig
from mesh.errors import RequestRefused, ShardCorrupt
from mesh.model.tokenizer import Tokenizer
from mesh.weights.shard import Shard

_MAX_PROMPT_CHARACTERS = 16 * 1024 * 1024  # more than any context holds

# For a base model that brings no template: the plainest transcript that it can continue.
_PLAIN = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


class _TemplateComplaint(jinja2.TemplateError):
    """``raise_exception`` of a template: the messages are not what it can render."""


class ChatTemplate:
    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as exc:
            raise ShardCorrupt("aux", "a readable chat template", str(exc), "pack the release again") from exc
        self._variables = dict(variables)

    @classmethod
    def from_aux(cls, shard: Shard, tokenizer: Tokenizer) -> ChatTemplate:
        """The template of the aux shard; a plain transcript where it has none."""
        config = LlamaConfig.from_json(json.loads(bytes(shard.bytes_of("config.json"))))
        variables = {"bos_token": "", "eos_token": ""}
        if config.bos_token_id is not None:
            variables["bos_token"] = tokenizer.token(config.bos_token_id) or ""
        if config.eos_token_ids:
            variables["eos_token"] = tokenizer.token(config.eos_token_ids[0]) or ""
        if "chat_template.jinja" not in shard.tensors:
            return cls(_PLAIN, variables)
        return cls(bytes(shard.bytes_of("chat_template.jinja")).decode("utf-8"), variables)

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The prompt. Raises RequestRefused (param ``messages``) if the template does not take the messages."""
        parts: list[str] = []
        length = 0
        try:
            for part in self._template.generate(
                messages=messages, add_generation_prompt=add_generation_prompt, **self._variables
            ):
                length += len(part)
                if length > _MAX_PROMPT_CHARACTERS:
                    raise RequestRefused(
                        f"messages make a prompt of more than {_MAX_PROMPT_CHARACTERS} characters",
                        param="messages",
                    )
                parts.append(part)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, OverflowError) as exc:
            raise RequestRefused(
                f"the model's chat template does not take these messages: {exc}", param="messages"
            ) from exc
        return "".join(parts)


def _raise_exception(message: str) -> None:
    raise _TemplateComplaint(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """As transformers has it: plain JSON, not Jinja's HTML-escaped one."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
