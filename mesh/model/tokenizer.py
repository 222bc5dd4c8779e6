"""Text to token ids and back, by the release's own tokenizer.

The tokenizer travels in the signed aux shard as a Hugging Face ``tokenizer.json``; the ``tokenizers`` library does the
work. Ours is only what a stream needs: text that leaves token by token and never ends inside a code point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer as HfTokenizer
from tokenizers.decoders import DecodeStream

from mesh.errors import ShardCorrupt
from mesh.weights.shard import Shard

_REPLACEMENT = "\ufffd"


class Tokenizer:
    def __init__(self, tokenizer: HfTokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def from_aux(cls, shard: Shard) -> Tokenizer:
        """Raises ShardCorrupt if the shard holds no tokenizer we can read."""
        if "tokenizer.json" not in shard.tensors:
            raise ShardCorrupt("aux", "a tokenizer.json", "none", "pack the release again")
        try:
            return cls(HfTokenizer.from_str(bytes(shard.bytes_of("tokenizer.json")).decode("utf-8")))
        except Exception as exc:  # the library raises bare Exception for whatever it dislikes
            raise ShardCorrupt(
                "aux", "a readable tokenizer.json", str(exc)[:200], "pack the release again"
            ) from exc

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids. Special tokens written in ``text`` are recognised; ``add_special`` adds what the model's
        post-processor would (BOS), which a chat template has already written."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """All the text of the ids; special tokens leave none."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it."""
        found: str | None = self._tokenizer.id_to_token(token_id)
        return found

    def decoder(self) -> IncrementalDecoder:
        return IncrementalDecoder(self._tokenizer)


class IncrementalDecoder:
    """Text of a growing sequence: ``"".join(push(id) for id in ids) + flush() == decode(ids)``.

    Text is given out once it is whole code points; what waits for its last byte is held back.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held: list[
            int
        ] = []  # since text last came out: at most the bytes of one code point, or specials

    def push(self, token_id: int) -> str:
        """The text that this id makes certain; often empty."""
        text = self._stream.step(self._tokenizer, token_id)
        if text is None:
            self._held.append(token_id)
            return ""
        self._held.clear()
        return str(text)

    def flush(self) -> str:
        """What is left at the end: a replacement character if the sequence ended inside a code point."""
        text = self._tokenizer.decode(self._held, skip_special_tokens=True) if self._held else ""
        self._held.clear()
        return _REPLACEMENT if _REPLACEMENT in text else ""
