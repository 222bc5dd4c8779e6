"""Answers held to a JSON schema: which tokens may come next. The one door to llguidance.

The coordinator has the tokenizer and the tokens, so the masks are made here, while the stages compute; the last stage
only applies them. Compiling and masking run in threads: a large schema must not stop the event loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from coordinator.token_pipeline import TokenMasks
from mesh.errors import MeshError, RequestRefused
from mesh.model.tokenizer import Tokenizer

MAX_SCHEMA_BYTES = 256 * 1024
# Without white space between values: a model that may write white space can write it until its tokens are spent.
_OPTIONS: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class GrammarFailed(MeshError):
    """A mask that could not be computed, for example within the library's bounds of work."""


class Grammar:
    """A compiled schema; every answer follows it with masks of its own."""

    def __init__(self, tokenizer: LLTokenizer, grammar: str) -> None:
        self._tokenizer, self._grammar = tokenizer, grammar

    def masks(self) -> TokenMasks:
        return _Masks(LLMatcher(self._tokenizer, self._grammar, log_level=0), self._tokenizer.vocab_size)


class _Masks:
    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._mask_bytes = (vocab_size + 31) // 32 * 4  # whole words; the library may add one more

    def accept(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)  # what it cannot take shows in the next mask

    async def next(self) -> bytes:
        mask = await asyncio.to_thread(self._matcher.compute_bitmask)
        if self._matcher.is_error():
            raise GrammarFailed(f"response_format: {self._matcher.get_error().splitlines()[0][:200]}")
        return mask[: self._mask_bytes]


class GrammarCompiler:
    """Of one model; its tokenizer is read once, when the first schema comes."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: tuple[int, ...]) -> None:
        self._source, self._vocab_size, self._eos_ids = tokenizer, vocab_size, eos_ids
        self._tokenizer: LLTokenizer | None = None
        self._reading = asyncio.Lock()

    async def compile(self, schema: Mapping[str, Any], param: str) -> Grammar:
        """Raises RequestRefused for a schema that is none, or that asks for what cannot be held."""
        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA_BYTES:
            raise RequestRefused(
                f"{param}: a schema of {len(text)} bytes, expected at most {MAX_SCHEMA_BYTES}", param=param
            )
        async with self._reading:
            if self._tokenizer is None:
                self._tokenizer = await asyncio.to_thread(self._read)
        tokenizer = self._tokenizer
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=_OPTIONS)
        is_error, told = await asyncio.to_thread(LLMatcher.validate_grammar_with_warnings, grammar, tokenizer)
        if is_error:
            raise RequestRefused(f"{param}: {' '.join(told[0].split())[:300]}", param=param)
        return Grammar(tokenizer, grammar)

    def _read(self) -> LLTokenizer:
        return LLTokenizer(self._source.to_json(), n_vocab=self._vocab_size, eos_token=list(self._eos_ids))
