"""A ``tokenizer.model``, of SentencePiece or of Llama 3, as the vocabulary a GGUF file would have.

Two formats share the name. SentencePiece's (Llama 1 and 2, Mistral, Vicuna) is a protobuf; Llama 3's is tiktoken's, a
line of base64 and a rank per token. Both are read here as GGUF metadata, so that ``gguf_tokenizer.py`` makes a
``tokenizer.json`` of them as it does for llama.cpp's conversion of the same file.

    metadata = vocabulary(path, path.read_bytes(), vocab_size=32000)

Follows sentencepiece's ``sentencepiece_model.proto``, and ``llama_models/llama3/tokenizer.py`` for the special tokens.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mesh.errors import CheckpointUnsupported
from mesh.weights.checkpoints.byte_chars import byte_text
from mesh.weights.checkpoints.gguf_tokenizer import REMOVES_EXTRA_SPACES

MAX_TOKENIZER_MODEL_BYTES = 32 * 1024 * 1024
_KEY = "tokenizer.ggml."
_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6
_BPE = 2  # TrainerSpec.ModelType
_LLAMA3_SPECIALS = 256
_LLAMA3_NAMES: Mapping[int, str] = {
    0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 5: "step_id", 6: "start_header_id",
    7: "end_header_id", 8: "eom_id", 9: "eot_id", 10: "python_tag",
    11: "image",
}  # fmt: skip
_TIKTOKEN_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (\d{1,7})")


def vocabulary(
    path: Path, data: bytes, vocab_size: int, added: Mapping[int, tuple[str, bool]] | None = None
) -> dict[str, Any]:
    """GGUF metadata of the tokens. ``added`` are tokens that a fine-tune put behind them: text, and whether special.

    Raises CheckpointUnsupported.
    """
    if _TIKTOKEN_LINE.fullmatch(data[:200].split(b"\n", 1)[0]):
        return _tiktoken(path, data, vocab_size)
    return _sentencepiece(path, data, added or {})


def _sentencepiece(path: Path, data: bytes, added: Mapping[int, tuple[str, bool]]) -> dict[str, Any]:
    try:
        model = _fields(data)
        trainer, normalizer = (dict(_last(_fields(_last(model).get(number, b"")))) for number in (2, 3))
        pieces = [_piece(value) for number, value in model if number == 1]
    except (ValueError, IndexError, struct.error, AttributeError, TypeError) as exc:
        raise CheckpointUnsupported(f"{path}: neither SentencePiece's format nor Llama 3's ({exc})") from exc
    if (kind := trainer.get(3, 1)) != _BPE:
        raise CheckpointUnsupported(f"{path}: a SentencePiece model of type {kind}; only BPE is supported")
    if normalizer.get(2):
        name = bytes(normalizer.get(1, b"?")).decode(errors="replace")
        raise CheckpointUnsupported(f"{path}: SentencePiece normalization {name[:40]!r} is not supported")
    if not normalizer.get(5, 1) or trainer.get(24, 0):
        raise CheckpointUnsupported(
            f"{path}: SentencePiece without leading spaces in its tokens is not supported"
        )
    if not any(type_ == _BYTE for _, _, type_ in pieces):
        raise CheckpointUnsupported(f"{path}: SentencePiece without byte tokens is not supported")
    for id_ in sorted(added):
        text, is_special = added[id_]
        if id_ < len(pieces):
            if pieces[id_][0] != text:
                raise CheckpointUnsupported(
                    f"{path}: added token {text[:40]!r} has the id of {pieces[id_][0][:40]!r}"
                )
            continue
        if id_ != len(pieces):
            raise CheckpointUnsupported(
                f"{path}: added token {text[:40]!r} has id {id_}, the next is {len(pieces)}"
            )
        pieces.append((text, 0.0, _CONTROL if is_special else _USER_DEFINED))
    metadata: dict[str, Any] = {
        "model": "llama",
        "tokens": [text for text, _, _ in pieces],
        "scores": [score for _, score, _ in pieces],
        "token_type": [type_ for _, _, type_ in pieces],
        "add_space_prefix": bool(normalizer.get(3, 1)),
    }
    for name, number, default in (("unknown", 40, 0), ("bos", 41, 1), ("eos", 42, 2)):
        id_ = trainer.get(number, default)
        if type(id_) is int and id_ < len(pieces):  # -1, a huge number here, is none
            metadata[f"{name}_token_id"] = id_
    removes_spaces = {REMOVES_EXTRA_SPACES: bool(normalizer.get(4, 1))}
    return {_KEY + name: value for name, value in metadata.items()} | removes_spaces


def _piece(data: Any) -> tuple[str, float, int]:
    piece = _last(_fields(data))
    (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
    return piece.get(1, b"").decode("utf-8"), score, int(piece.get(3, _NORMAL))


def _last(fields: list[tuple[int, Any]]) -> dict[int, Any]:
    """Of a field that is not repeated, the last counts."""
    return dict(fields)


def _fields(data: bytes) -> list[tuple[int, Any]]:
    """A protobuf message: field numbers and their values, integers or bytes. Raises ValueError, IndexError."""
    return list(_each_field(data))


def _each_field(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    while at < len(data):
        tag = varint()
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            yield number, varint()
            continue
        if wire_type not in (1, 2, 5):
            raise ValueError(f"wire type {wire_type}")
        length = varint() if wire_type == 2 else {1: 8, 5: 4}[wire_type]
        if at + length > len(data):
            raise ValueError("it is cut short")
        yield number, data[at : at + length]
        at += length


def _tiktoken(path: Path, data: bytes, vocab_size: int) -> dict[str, Any]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines()):
        match = _TIKTOKEN_LINE.fullmatch(line)
        try:
            token = base64.b64decode(match[1], validate=True) if match else b""
        except binascii.Error:
            token = b""
        if not match or not token or int(match[2]) != number or token in ranks:
            raise CheckpointUnsupported(f"{path}: line {number + 1} is not a token and its rank {number}")
        ranks[token] = number
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise CheckpointUnsupported(f"{path}: not every byte is a token")
    if len(ranks) + _LLAMA3_SPECIALS > vocab_size:
        raise CheckpointUnsupported(
            f"{path}: {len(ranks)} tokens and Llama 3's {_LLAMA3_SPECIALS} special ones for a model of {vocab_size}"
        )
    names = _llama3_specials()
    metadata = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": [byte_text(token) for token in ranks] + names,
        "token_type": [_NORMAL] * len(ranks) + [_CONTROL] * len(names),
        "merges": [f"{byte_text(left)} {byte_text(right)}" for left, right in _merges(ranks)],
        "bos_token_id": len(ranks),
        "eos_token_id": len(ranks) + 1,
    }
    return {_KEY + name: value for name, value in metadata.items()}


def _llama3_specials() -> list[str]:
    reserved = iter(range(_LLAMA3_SPECIALS))
    return [
        f"<|{_LLAMA3_NAMES[at]}|>" if at in _LLAMA3_NAMES else f"<|reserved_special_token_{next(reserved)}|>"
        for at in range(_LLAMA3_SPECIALS)
    ]


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """tiktoken merges whichever neighbours make the token of the lowest rank: all pairs that make one, by its rank."""
    for token in ranks:
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        pairs = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        yield from sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
