"""A tokenizer made of a ``tokenizer.model`` gives exactly the ids of the library the file was made for."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as HfTokenizer

from mesh import strict_json
from mesh.errors import CheckpointUnsupported
from mesh.model.tokenizer import Tokenizer
from mesh.weights.checkpoints.byte_chars import byte_text
from mesh.weights.checkpoints.checkpoint import open_checkpoint
from mesh.weights.checkpoints.gguf_tokenizer import tokenizer_json
from mesh.weights.checkpoints.tokenizer_model import vocabulary
from tests.support.tiny_models import _byte_char, write_tiny_checkpoint
from tests.support.vocabularies import LLAMA3, MISTRAL_V1, trained_sentencepiece, vocabulary_file

spm = pytest.importorskip("sentencepiece", reason="the oracle, a dev dependency")
tiktoken = pytest.importorskip("tiktoken", reason="the oracle, a dev dependency")

WORDS = (
    "the", "hello", "don't", "I'LL", "1234567", "3.14", "aaaaaaaa", "=====", "été", "ΑΒΓ", "日本語", "🦙🦙", "e\u0301", "a\u200db",
    "  ", "    ", "\t", "\n\n\n", "\r\n", "▁", "def f(x):\n    return x", "<|", "[INST]",
)  # fmt: skip


def texts(count: int, pieces: list[str]) -> list[str]:
    """Words and pieces in random order, glued and spaced, and what people forget."""
    rng = random.Random(20)
    found = ["", " ", "  ", " a", "a ", "\n", "🦙", "\x00", "▁a", "a" * 500, " " * 50]
    while len(found) < count:
        source = rng.choice((WORDS, pieces, "ab \n1é漢🦙.,'"))
        found.append(rng.choice(("", " ")).join(rng.choice(source) for _ in range(rng.randint(1, 25))))
    return found


def built(path: Path, vocab_size: int) -> Tokenizer:
    metadata = vocabulary(path, path.read_bytes(), vocab_size)
    return Tokenizer(
        HfTokenizer.from_str(strict_json.dumps(tokenizer_json(path, metadata, vocab_size)).decode())
    )


def assert_same_ids(ours: Tokenizer, theirs: Callable[[str], list[int]], bos: int, pieces: list[str]) -> None:
    for text in texts(1500, pieces):
        assert ours.encode(text) == [bos, *theirs(text)], repr(text)


def assert_streams_whole_code_points(ours: Tokenizer, text: str) -> None:
    ids = ours.encode(text, add_special=False)
    decoder = ours.decoder()
    parts = [decoder.push(id_) for id_ in ids]
    assert "".join(parts) + decoder.flush() == text
    assert not any("\ufffd" in part for part in parts)


def test_real_sentencepiece_vocabulary_gives_sentencepieces_ids() -> None:
    path = vocabulary_file(MISTRAL_V1)
    reference = spm.SentencePieceProcessor(str(path))
    ours = built(path, 32000)
    pieces = [reference.id_to_piece(id_).replace("▁", " ") for id_ in range(259, 32000)]
    assert_same_ids(ours, reference.encode, 1, pieces)
    assert [ours.token(id_) for id_ in (0, 1, 2, 3, 258)] == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    assert ours.encode("a</s>b", add_special=False)[1:2] == [2]  # a special token written in the text is one
    assert_streams_whole_code_points(ours, "été 日本語 🦙🦙 ᚠᛇᚻ x\n")


def test_real_llama3_vocabulary_gives_tiktokens_ids() -> None:
    path = vocabulary_file(LLAMA3)
    ranks = {
        base64.b64decode(token): int(rank)
        for token, rank in (line.split() for line in path.read_bytes().splitlines())
    }
    cut = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    reference = tiktoken.Encoding("llama3", pat_str=cut, mergeable_ranks=ranks, special_tokens={})
    ours = built(path, 128256)
    pieces = [token.decode("utf-8", "ignore") for token in ranks]
    assert_same_ids(ours, reference.encode_ordinary, 128000, pieces)
    specials = {
        0: "<|begin_of_text|>", 1: "<|end_of_text|>", 2: "<|reserved_special_token_0|>", 6: "<|start_header_id|>",
        7: "<|end_header_id|>", 8: "<|eom_id|>", 9: "<|eot_id|>", 10: "<|python_tag|>",
        12: "<|reserved_special_token_2|>", 255: "<|reserved_special_token_245|>",
    }  # fmt: skip
    for at, text in specials.items():
        assert ours.encode(text, add_special=False) == [128000 + at]
    assert ours.vocab_size == 128256
    assert_streams_whole_code_points(ours, "été 日本語 🦙🦙 ᚠᛇᚻ x\n")


@pytest.mark.parametrize(
    "options",
    [{}, {"add_dummy_prefix": False}, {"remove_extra_whitespaces": True}, {"split_digits": True, "bos_id": 3, "pad_id": 1}],
    ids=["llama", "no prefix", "whitespace removed", "other special ids"],
)  # fmt: skip
def test_every_setting_of_sentencepiece_gives_its_ids(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(trained_sentencepiece(**options))
    reference = spm.SentencePieceProcessor(model_proto=path.read_bytes())
    pieces = [reference.id_to_piece(id_).replace("▁", " ") for id_ in range(259, reference.vocab_size())]
    assert_same_ids(built(path, 400), reference.encode, reference.bos_id(), pieces)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model_type": "unigram"}, "type 1; only BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalization 'nmt_nfkc'"),
        ({"byte_fallback": False}, "without byte tokens"),
        ({"treat_whitespace_as_suffix": True}, "without leading spaces"),
    ],
)
def test_what_would_give_other_ids_is_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointUnsupported, match=says):
        vocabulary(tmp_path / "tokenizer.model", trained_sentencepiece(vocab_size=300, **options), 400)


def tiktoken_file(tokens: list[bytes]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


BYTES = [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize(
    ("data", "vocab_size", "says"),
    [
        (b"", 512, "not byte|without byte|of type 1"),
        (b"\x0a\xff\xff", 512, "neither SentencePiece's format nor Llama 3's"),
        (b"\x0a\x05ab", 512, "cut short"),
        (tiktoken_file(BYTES), 511, "256 tokens and Llama 3's 256 special ones for a model of 511"),
        (tiktoken_file(BYTES[1:]), 512, "not every byte"),
        (tiktoken_file([*BYTES, b"a"]), 513, "line 257"),
        (tiktoken_file(BYTES) + b"!!! 256\n", 513, "line 257"),
        (tiktoken_file(BYTES) + b"YWI= 300\n", 513, "line 257"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, data: bytes, vocab_size: int, says: str) -> None:
    with pytest.raises(CheckpointUnsupported, match=says):
        vocabulary(tmp_path / "tokenizer.model", data, vocab_size)


def test_bytes_are_written_as_gpt2_writes_them() -> None:
    assert byte_text(bytes(range(256))) == "".join(_byte_char(byte) for byte in range(256))


def directory_with(tmp_path: Path, **files: Any) -> Path:
    directory = write_tiny_checkpoint(tmp_path / "x", vocab_size=400)
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.model").write_bytes(trained_sentencepiece())
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value))
    return directory


def packed_tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer(HfTokenizer.from_str(open_checkpoint(directory).aux_files["tokenizer.json"].decode()))


def test_a_directory_without_tokenizer_json_gets_one_made(tmp_path: Path) -> None:
    directory = directory_with(tmp_path, tokenizer_config={})
    reference = spm.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    assert packed_tokenizer(directory).encode("the band 2024") == [1, *reference.encode("the band 2024")]
    assert "tokenizer.model" in {path.name for path in open_checkpoint(directory).source_files}


def test_tokens_that_a_fine_tune_added_have_their_ids(tmp_path: Path) -> None:
    size = spm.SentencePieceProcessor(model_proto=trained_sentencepiece()).vocab_size()
    directory = directory_with(
        tmp_path,
        added_tokens={"[PAD]": size},
        tokenizer_config={
            "pad_token": "[PAD]",
            "add_bos_token": False,
            "added_tokens_decoder": {
                "1": {"content": "<s>", "special": True},
                str(size + 1): {"content": "<tool>", "special": False},
            },
        },
    )
    tokenizer = packed_tokenizer(directory)
    ids = tokenizer.encode("[PAD]<tool>")
    assert ids == [size, size + 1]
    assert tokenizer.decode(ids) == "<tool>"


@pytest.mark.parametrize(("id_", "says"), [(390, "id 390, the next is"), (5, "has the id of")])
def test_an_added_token_that_does_not_fit_is_refused(tmp_path: Path, id_: int, says: str) -> None:
    with pytest.raises(CheckpointUnsupported, match=says):
        open_checkpoint(directory_with(tmp_path, added_tokens={"[PAD]": id_}))
