"""Answers held to a JSON schema or another grammar: which tokens may come next. The one door to llguidance.

The coordinator has the tokenizer and the tokens, so the masks are made here, while the stages compute; the last stage
only applies them. Compiling and masking run in threads: a large schema must not stop the event loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from coordinator.token_pipeline import TokenMasks
from mesh.errors import RequestRefused
from mesh.model.tokenizer import Tokenizer

MAX_GRAMMAR_BYTES = 256 * 1024
# Without white space between values: a model that may write white space can write it until its tokens are spent.
SCHEMA_OPTIONS: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class GrammarFailed(RequestRefused):
    """A mask that could not be computed within the library's bounds of work, which only an answer under way shows."""


class Grammar:
    """A compiled grammar; every answer follows it with masks of its own."""

    def __init__(self, tokenizer: LLTokenizer, grammar: str, param: str) -> None:
        self._tokenizer, self._grammar, self._param = tokenizer, grammar, param

    def masks(self) -> TokenMasks:
        matcher = LLMatcher(self._tokenizer, self._grammar, log_level=0)
        return _Masks(matcher, self._tokenizer.vocab_size, self._param)


class _Masks:
    def __init__(self, matcher: LLMatcher, vocab_size: int, param: str) -> None:
        self._matcher, self._param = matcher, param
        self._mask_bytes = (vocab_size + 31) // 32 * 4  # whole words; the library may add one more

    def accept(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)  # what it cannot take shows in the next mask

    async def next(self) -> bytes:
        mask = await asyncio.to_thread(self._matcher.compute_bitmask)
        if self._matcher.is_error():
            reason = self._matcher.get_error().splitlines()[0][:200]
            raise GrammarFailed(
                f"{self._param}: the answer cannot be held to it: {reason}", param=self._param
            )
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
        _check_size(text, "a schema", param)
        return await self._compile(
            lambda: LLMatcher.grammar_from_json_schema(text, overrides=SCHEMA_OPTIONS), param
        )

    async def compile_regex(self, pattern: str, param: str) -> Grammar:
        """Of the whole answer, in the syntax of Rust's regex crate. Raises RequestRefused."""
        _check_size(pattern, "a pattern", param)
        return await self._compile(lambda: LLMatcher.grammar_from_regex(pattern), param)

    async def compile_choice(self, choices: Sequence[str], param: str) -> Grammar:
        """One of these texts. Raises RequestRefused."""
        texts = [json.dumps(choice, ensure_ascii=False) for choice in choices]
        return await self.compile_lark(f"start: {' | '.join(texts)}", param)

    async def compile_grammar(self, text: str, param: str) -> Grammar:
        """Lark as llguidance writes it, or the GBNF of llama.cpp. Raises RequestRefused."""
        _check_size(text, "a grammar", param)
        try:
            lark = await asyncio.to_thread(any_to_lark, text)
        except Exception as exc:  # the library's reader of GBNF raises whatever it stumbles over
            raise RequestRefused(
                f"{param}: neither Lark nor GBNF: {' '.join(str(exc).split())[:300]}", param=param
            ) from exc
        return await self.compile_lark(lark, param)

    async def compile_lark(self, text: str, param: str) -> Grammar:
        """Raises RequestRefused."""
        _check_size(text, "a grammar", param)
        return await self._compile(lambda: LLMatcher.grammar_from_lark(text), param)

    async def _compile(self, make: Callable[[], str], param: str) -> Grammar:
        async with self._reading:
            if self._tokenizer is None:
                self._tokenizer = await asyncio.to_thread(self._read)
        tokenizer = self._tokenizer
        try:
            grammar = make()
            is_error, told = await asyncio.to_thread(
                LLMatcher.validate_grammar_with_warnings, grammar, tokenizer
            )
        except (ValueError, RecursionError) as exc:  # nested deeper than the library reads
            raise RequestRefused(f"{param}: {' '.join(str(exc).split())[:300]}", param=param) from exc
        if is_error:
            raise RequestRefused(f"{param}: {' '.join(told[0].split())[:300]}", param=param)
        return Grammar(tokenizer, grammar, param)

    def _read(self) -> LLTokenizer:
        return LLTokenizer(self._source.to_json(), n_vocab=self._vocab_size, eos_token=list(self._eos_ids))


def _check_size(text: str, what: str, param: str) -> None:
    if len(text) > MAX_GRAMMAR_BYTES:
        raise RequestRefused(
            f"{param}: {what} of {len(text)} bytes, expected at most {MAX_GRAMMAR_BYTES}", param=param
        )
