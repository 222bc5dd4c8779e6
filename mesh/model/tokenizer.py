"""Text to token ids and back, by the release's own tokenizer.

The tokenizer travels in the signed aux shard as a Hugging Face ``tokenizer.json``; the ``tokenizers`` library does the
work. Ours is only what a stream needs: text that leaves token by token and never ends inside a code point.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer as HfTokenizer

from mesh.errors import ShardCorrupt
from mesh.weights.shards.shard import Shard

_REPLACEMENT = "\ufffd"
_SPACE = "\u2581"  # SentencePiece's visible stand-in
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CODE_POINT = 4  # bytes at most, and so ids
_MAX_HELD = 64  # ids without certain text (a long run of U+FFFD): bounds the work for each further id


def _byte_characters() -> dict[str, bytes]:
    """GPT-2's visible stand-ins for bytes: themselves where printable, else characters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): bytes([byte]) for byte in printable} | {
        chr(0x100 + index): bytes([byte]) for index, byte in enumerate(others)
    }


_BYTE_OF = _byte_characters()


class Tokenizer:
    def __init__(self, tokenizer: HfTokenizer) -> None:
        # What a file may ask for, and no model server wants: prompts cut short or filled up.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._added_ids = frozenset(added)
        decoder = tokenizer.decoder  # its state is its part of tokenizer.json
        self._is_byte_level = decoder is not None and b'"ByteLevel"' in bytes(decoder.__getstate__())

    @classmethod
    def from_aux(cls, shard: Shard) -> Tokenizer:
        """Raises ShardCorrupt if the shard holds no tokenizer we can read."""
        if "tokenizer.json" not in shard.tensors:
            raise ShardCorrupt("aux", "a tokenizer.json", "none", "its publisher must pack it again")
        try:
            return cls(HfTokenizer.from_str(bytes(shard.bytes_of("tokenizer.json")).decode("utf-8")))
        except Exception as exc:  # the library raises bare Exception for whatever it dislikes
            reason = " ".join(str(exc).split())[:200]
            raise ShardCorrupt(
                "aux", "a readable tokenizer.json", reason, "its publisher must pack it again"
            ) from exc

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids. Special tokens written in ``text`` are recognised; ``add_special`` adds what the model's
        post-processor would (BOS), which a chat template has already written."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special).ids)

    def decode(self, ids: Sequence[int], *, show_special: bool = False) -> str:
        """All the text of the ids; special tokens leave none unless ``show_special``."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not show_special))

    def to_json(self) -> str:
        """The tokenizer.json, as it is used here."""
        return str(self._tokenizer.to_str())

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, of a special token its name; they need not be whole code points."""
        token = self.token(token_id)
        if (
            token is None
        ):  # a hole in the vocabulary: a model may have more rows than its tokenizer has tokens
            return b""
        if token_id in self._added_ids:
            return token.encode()
        if self._is_byte_level:
            return b"".join(_BYTE_OF.get(char, char.encode()) for char in token)
        if byte := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(byte[1], 16)])
        return token.replace(_SPACE, " ").encode()

    def token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it."""
        found: str | None = self._tokenizer.id_to_token(token_id)
        return found

    def special_id(self, token: str) -> int | None:
        """The id of a special token of that name: one that is no text."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id if token_id in self._special_ids else None

    def decoder(self) -> IncrementalDecoder:
        return IncrementalDecoder(self.decode, self._special_ids)


class IncrementalDecoder:
    """Text of a growing sequence: ``"".join(push(id) for id in ids) + flush() == decode(ids)``.

    Text is given out once it is whole code points; what waits for its last byte is held back. A token's text may depend
    on the token before it (white space, runs of byte tokens), so what is new is found by decoding a short window with and
    without the ids that are new. Bytes that are no text become U+FFFD; how many, a vocabulary with byte fallback decides
    by the whole run of bytes, which a stream sees too late: there ``decode`` may count differently.

    ``tokenizers``' own ``DecodeStream`` raises there, and swallows what is held back when the sequence ends.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], special_ids: frozenset[int]) -> None:
        self._decode, self._special_ids = decode, special_ids
        self._shown: list[int] = []  # context: ids whose text has been given out
        self._held: list[int] = []  # ids since then

    def push(self, token_id: int) -> str:
        """The text that this id makes certain; often empty."""
        if token_id in self._special_ids:
            return ""
        self._held.append(token_id)
        before, after = self._decode(self._shown), self._decode([*self._shown, *self._held])
        # An unfinished code point shows as U+FFFD at the end, or makes the run of bytes before it unreadable too.
        if after.startswith(before) and not after.endswith(_REPLACEMENT):
            return self._give(len(self._held))
        if len(self._held) < _MAX_HELD:
            return ""
        return self._give(len(self._held) - _CODE_POINT + 1)  # what may still become a code point stays

    def flush(self) -> str:
        """What is left at the end: replacement characters if the sequence ended inside a code point."""
        return self._give(len(self._held))

    def _give(self, count: int) -> str:
        """The text of the first ``count`` held ids."""
        if not count:
            return ""
        given, self._held = self._held[:count], self._held[count:]
        before, after = self._decode(self._shown), self._decode([*self._shown, *given])
        if not after.startswith(before):  # bytes that are no text; what was given out stays
            before, after = "", self._decode(given)
        self._shown = given
        return after[len(before) :]
