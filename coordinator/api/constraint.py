"""What an answer's text must follow: the several spellings of OpenAI, llama.cpp and vLLM as one value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from coordinator.api.fields import AnswerFields, StructuredOutputs
from coordinator.grammar import GrammarCompiler
from coordinator.token_pipeline import MaskSource
from mesh.errors import RequestRefused

MAX_CHOICES = 1024


@dataclass(frozen=True, slots=True)
class Constraint:
    kind: Literal["schema", "regex", "choice", "grammar"]
    value: Any
    param: str  # the field that said so


def constraint_of(fields: AnswerFields, *others: Constraint) -> Constraint | None:
    """The one that the fields and the dialect's own ones ask for. Raises RequestRefused for two."""
    found = [*others, *_local(fields)]
    if not found:
        return None
    if len(found) > 1:
        raise RequestRefused(
            f"{found[1].param} and {found[0].param} both say what the answer must follow; leave one out",
            param=found[1].param,
        )
    [constraint] = found
    if fields.ignore_eos:
        raise RequestRefused(
            f"ignore_eos with {constraint.param}: such an answer has an end", param="ignore_eos"
        )
    if constraint.kind == "choice" and not 0 < len(constraint.value) <= MAX_CHOICES:
        raise RequestRefused(f"{constraint.param}: expected 1 to {MAX_CHOICES} texts", param=constraint.param)
    return constraint


async def compile_constraint(constraint: Constraint, compiler: GrammarCompiler) -> MaskSource:
    """Raises RequestRefused for what cannot be held."""
    match constraint.kind:
        case "schema":
            return await compiler.compile(constraint.value, constraint.param)
        case "regex":
            return await compiler.compile_regex(constraint.value, constraint.param)
        case "choice":
            return await compiler.compile_choice(constraint.value, constraint.param)
        case "grammar":
            return await compiler.compile_grammar(constraint.value, constraint.param)


def _local(fields: AnswerFields) -> Iterator[Constraint]:
    """Of local servers."""
    if fields.grammar:
        yield Constraint("grammar", fields.grammar, "grammar")
    if fields.json_schema is not None:
        yield Constraint("schema", fields.json_schema, "json_schema")
    if fields.structured_outputs is not None:
        yield from _structured(fields.structured_outputs)
    guided = StructuredOutputs.model_construct(
        json_=fields.guided_json,
        regex=fields.guided_regex,
        choice=fields.guided_choice,
        grammar=fields.guided_grammar,
    )
    yield from _structured(guided, "guided_")


def _structured(wanted: StructuredOutputs, prefix: str = "structured_outputs.") -> Iterator[Constraint]:
    if wanted.json_ is not None:
        yield Constraint("schema", _schema(wanted.json_, f"{prefix}json"), f"{prefix}json")
    if wanted.regex:
        yield Constraint("regex", wanted.regex, f"{prefix}regex")
    if wanted.choice is not None:
        yield Constraint("choice", wanted.choice, f"{prefix}choice")
    if wanted.grammar:
        yield Constraint("grammar", wanted.grammar, f"{prefix}grammar")
    if wanted.json_object:
        yield Constraint("schema", {"type": "object"}, f"{prefix}json_object")
    if wanted.structural_tag is not None:
        raise RequestRefused(
            f"{prefix}structural_tag is not supported by this mesh; leave it out",
            code="unsupported_parameter",
            param=f"{prefix}structural_tag",
        )


def _schema(value: dict[str, Any] | str, param: str) -> dict[str, Any]:
    """vLLM takes a schema as JSON text, too."""
    if isinstance(value, dict):
        return value
    try:
        schema = json.loads(value)
    except (ValueError, RecursionError) as exc:
        raise RequestRefused(f"{param}: not JSON: {exc}", param=param) from exc
    if not isinstance(schema, dict):
        raise RequestRefused(f"{param}: expected a JSON object", param=param)
    return schema
