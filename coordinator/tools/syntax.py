"""How each family of models writes a call: told by its chat template, as llama.cpp tells it.

| syntax | a call |
|---|---|
| Hermes, Qwen, and every model whose template has no tools | ``<tool_call>`` JSON ``</tool_call>`` |
| Llama 3.1 to 3.3 | the answer is JSON with ``name`` and ``parameters``, perhaps after ``<|python_tag|>`` |
| Mistral | ``[TOOL_CALLS]`` and a JSON list; since v11 ``[TOOL_CALLS]`` name ``[ARGS]`` JSON |
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.model.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True)
class CallSyntax:
    name: str
    opener: str  # what begins calls
    closer: str = ""  # what ends each of them
    separator: str = ""  # between calls
    arguments_key: str = "arguments"
    is_bare: bool = False  # an answer that begins as a call's JSON is one, without the opener
    is_list: bool = False  # the calls after one opener are a JSON list
    arguments_mark: str = ""  # a call is opener, name, this, arguments
    is_single: bool = False  # the template takes one call in a message
    has_short_ids: bool = False  # the template takes ids of nine letters and digits
    is_native: bool = True  # the template knows tools

    @property
    def marks(self) -> tuple[str, ...]:
        """Text of the syntax that may be special tokens, which else leave no text."""
        return tuple(mark for mark in (self.opener, self.closer, self.arguments_mark) if mark)


HERMES = CallSyntax("hermes", "<tool_call>", "</tool_call>", "\n")
LLAMA3 = CallSyntax("llama3", "<|python_tag|>", separator="; ", arguments_key="parameters", is_bare=True)
LLAMA3_SINGLE = CallSyntax(
    "llama3", "<|python_tag|>", arguments_key="parameters", is_bare=True, is_single=True
)
MISTRAL = CallSyntax("mistral", "[TOOL_CALLS]", separator=", ", is_list=True, has_short_ids=True)
MISTRAL_ARGS = CallSyntax("mistral", "[TOOL_CALLS]", arguments_mark="[ARGS]", has_short_ids=True)
GENERIC = CallSyntax("generic", "<tool_call>", "</tool_call>", "\n", is_native=False)


def syntax_of(template: ChatTemplate) -> CallSyntax:
    source = template.source
    if not template.takes_tools:
        return GENERIC
    if "<tool_call>" in source:
        return HERMES
    if "[TOOL_CALLS]" in source:
        return MISTRAL_ARGS if "[ARGS]" in source else MISTRAL
    # Llama 3's says so in an exception; it writes calls as JSON, as most do that have no mark of their own.
    return LLAMA3_SINGLE if "single tool-call" in source else LLAMA3
