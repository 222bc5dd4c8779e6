"""A tokenizer built from a GGUF vocabulary gives the ids that the reference gives."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mesh import strict_json
from mesh.errors import CheckpointUnsupported
from mesh.weights.checkpoints.gguf_file import read_gguf
from mesh.weights.checkpoints.gguf_tokenizer import _merges_by_score, tokenizer_json
from tests.mesh.weights.tiny_gguf import vocabulary


def tokenizer(metadata: dict[str, Any], vocab_size: int = 300) -> Tokenizer:
    return Tokenizer.from_str(
        strict_json.dumps(tokenizer_json(Path("x.gguf"), metadata, vocab_size)).decode()
    )


def byte_level(**changed: Any) -> Tokenizer:
    return tokenizer(
        {**vocabulary(300), **{f"tokenizer.ggml.{key}": value for key, value in changed.items()}}
    )


def pieces(pre: str, text: str) -> list[str]:
    """How a text is cut before merging, in plain characters."""
    cut = byte_level(pre=pre).pre_tokenizer
    return [text[start:stop] for _, (start, stop) in cut.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "Hello  world 1234 I'll", ["Hello", " ", " world", " 1234", " I", "'ll"]),
        ("smollm", "year 2024!", ["year", " ", "2", "0", "2", "4", "!"]),
        ("llama-bpe", "in 12345 I'LL\n\n x", ["in", " ", "123", "45", " I", "'LL", "\n\n", " x"]),
        ("llama-bpe", "a,b (x)\t\ty  ", ["a", ",b", " (", "x", ")", "\t", "\ty", "  "]),
        ("qwen2", "in 123 x\r\n", ["in", " ", "1", "2", "3", " x", "\r\n"]),
    ],
)
def test_text_is_cut_as_llama_cpp_cuts_it(pre: str, text: str, expected: list[str]) -> None:
    assert pieces(pre, text) == expected


BUILT = {pre: byte_level(pre=pre) for pre in ("gpt-2", "smollm", "llama-bpe")}


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(BUILT)), st.text(max_size=40))
def test_byte_level_decoding_gives_the_text_back(pre: str, text: str) -> None:
    built = BUILT[pre]
    assert built.decode(built.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_merges_apply_and_specials_stay_whole() -> None:
    built = byte_level()
    assert [built.id_to_token(i) for i in built.encode("in the<|im_end|>").ids] == [
        "in",
        "Ġthe",
        "<|im_end|>",
    ]


def test_unused_tokens_have_no_text() -> None:
    assert byte_level().token_to_id("[PAD0]") is None
    assert len(byte_level(pre="llama-bpe", add_bos_token=False).encode("[PAD0]").ids) == 6


def test_bos_and_eos_are_added_as_the_file_says() -> None:
    assert byte_level().encode("in").ids[0] != 256
    assert byte_level(add_bos_token=True).encode("in").ids == [256, *byte_level().encode("in").ids]
    assert (
        byte_level(add_bos_token=True).encode("in", add_special_tokens=False).ids
        == byte_level().encode("in").ids
    )
    assert byte_level(add_eos_token=True).encode("in").ids[-1] == 258
    assert byte_level(pre="llama-bpe").encode("in").ids[0] == 256  # llama.cpp's default for it
    with pytest.raises(CheckpointUnsupported, match="does not say which"):
        byte_level(add_bos_token=True, bos_token_id=None)


def test_the_same_vocabulary_gives_the_same_bytes() -> None:
    entries = vocabulary(300)
    again = dict(reversed(list(entries.items())))
    assert strict_json.dumps(tokenizer_json(Path("x"), entries, 300)) == strict_json.dumps(
        tokenizer_json(Path("x"), again, 300)
    )


# A SentencePiece vocabulary: <unk> <s> </s>, the bytes, then pieces whose score is their negative rank, as trained ones have.
PIECES = [
    "▁t",
    "in",
    "er",
    "▁a",
    "he",
    "on",
    "re",
    "▁th",
    "▁the",
    "at",
    "en",
    "ing",
    "▁w",
    "▁s",
    "or",
    "nd",
    "▁b",
    "▁and",
    "▁of",
    "ll",
    "▁to",
    "hello",
    "▁hello",
    "wor",
    "▁world",
    "▁▁",
    "he-",
    "ell",
    "lo",
    "▁wor",
    "ld",
]
CHARACTERS = sorted(set("".join(PIECES)) | set("▁abcdefghijklmnopqrstuvwxyz"))


def sentencepiece(**changed: Any) -> dict[str, Any]:
    # Every piece must be reachable by merging two others: add the missing prefixes behind.
    ranked = list(PIECES)
    for piece in PIECES:
        ranked += [piece[:stop] for stop in range(2, len(piece)) if piece[:stop] not in ranked]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *ranked, *CHARACTERS]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(ranked) + len(CHARACTERS))
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(ranked) + len(CHARACTERS))]
    entries = {
        "model": "llama", "tokens": tokens, "token_type": types, "scores": scores,
        "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
    } | changed  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in entries.items()}


def reference_ids(text: str, metadata: dict[str, Any]) -> list[int]:
    """SentencePiece's BPE as llama.cpp states it: join the neighbours whose whole scores highest, leftmost first."""
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    ids = {token: id_ for id_, token in enumerate(tokens)}
    symbols = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        joins = [
            (scores[ids[left + right]], -at)
            for at, (left, right) in enumerate(pairwise(symbols))
            if ids.get(left + right, 0) >= 259
        ]
        if not joins:
            break
        at = -max(joins)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    found: list[int] = []
    for symbol in symbols:
        found += [ids[symbol]] if symbol in ids else [3 + byte for byte in symbol.encode()]
    return found


WORDS = st.sampled_from(
    ["hello", "world", "the", "and", "thing", "on", " ", "  ", "é", "日本", "🚀", "other", "\n"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, max_size=12))
def test_sentencepiece_ids_equal_the_reference(words: list[str]) -> None:
    metadata, text = sentencepiece(), "".join(words)
    built = tokenizer(metadata, len(metadata["tokenizer.ggml.tokens"]))
    ids = built.encode(text, add_special_tokens=False).ids
    assert ids == reference_ids(text, metadata)
    assert built.decode(ids) == text
    assert built.encode(text).ids == [1, *ids]


def test_sentencepiece_space_prefix_can_be_off() -> None:
    metadata = sentencepiece(add_space_prefix=False)
    built = tokenizer(metadata, len(metadata["tokenizer.ggml.tokens"]))
    assert built.id_to_token(built.encode("hello", add_special_tokens=False).ids[0]) == "hello"
    assert built.decode(built.encode(" hello").ids) == " hello"


def test_sentencepiece_without_scores_is_refused() -> None:
    with pytest.raises(CheckpointUnsupported, match="scores"):
        tokenizer(sentencepiece(scores=[0.0]), 1000)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text("ab▁", min_size=1, max_size=5), st.sampled_from([-1.0, -2.0, -3.0]), max_size=30)
)
def test_merge_order_equals_transformers(scores: dict[str, float]) -> None:
    from transformers.convert_slow_tokenizer import generate_merges

    ids = {text: index for index, text in enumerate(scores)}
    assert [tuple(pair) for pair in _merges_by_score(ids, scores)] == generate_merges(ids, scores)


SAMPLES = (
    "Hello, world! How are you?",
    "  leading, trailing  and   many    spaces   \n\n\t tabs\r\nand lines",
    "def f(x: int) -> str:\n    return f'{x ** 2:>10}'  # ünïcödé → 日本語",
    "I'll, we'RE, don't, O'Neill's; 3.14159 and 1,234,567 in 2024",
    "🚀 👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 ﬁ \u200b\u2028 ¡¿",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><repo_name>x",
    "Привет, мир. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया",
    "",
)


@pytest.mark.real_model
def test_real_vocabulary_gives_the_ids_of_transformers(real_gguf: Path) -> None:
    from transformers import AutoTokenizer

    file = read_gguf(real_gguf)
    ours = tokenizer(dict(file.metadata), 49152)
    theirs = AutoTokenizer.from_pretrained(real_gguf.parent, gguf_file=real_gguf.name)
    for text in SAMPLES:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.real_model
def test_real_vocabulary_cuts_every_digit_alone(real_gguf: Path) -> None:
    # The model was trained so, and llama.cpp does so; transformers' reading of the GGUF joins " ½" to one piece.
    ours = tokenizer(dict(read_gguf(real_gguf).metadata), 49152)
    assert ours.encode("a ½").ids == ours.encode("a ").ids + ours.encode("½").ids
