"""The vocabulary of a GGUF file as a ``tokenizer.json`` of Hugging Face's ``tokenizers``.

GGUF names how text is cut before merging (``tokenizer.ggml.pre``) instead of saying it; the ways this version knows are
written down here, any other is refused by name, because a wrong cut gives wrong tokens and no error. A pure function
of the metadata: the same file gives the same tokenizer everywhere.

Follows llama.cpp's ``src/llama-vocab.cpp`` (the expressions per ``pre``, the defaults of the flags) and, for
SentencePiece vocabularies, transformers' ``convert_slow_tokenizer.py`` (LlamaConverter, ``generate_merges``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.errors import CheckpointUnsupported

# enum llama_token_type
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6
REMOVES_EXTRA_SPACES = "sentencepiece.remove_extra_whitespaces"
_SPACE = "▁"  # SentencePiece's visible space, U+2581


@dataclass(frozen=True, slots=True)
class _Cut:
    """How a byte-level BPE cuts text before merging."""

    pre_tokenizers: tuple[dict[str, Any], ...]
    normalizer: dict[str, Any] | None = None
    ignore_merges: bool = False  # a piece that is a token stays whole
    adds_bos: bool = False  # unless the file says otherwise


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


_GPT2 = _Cut((_byte_level(use_regex=True),))
_DIGITS = {"type": "Digits", "individual_digits": True}


def _like_tiktoken(number: str) -> tuple[dict[str, Any], ...]:
    regex = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + number + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return _split(regex), _byte_level(use_regex=False)


_CUTS: Mapping[str, _Cut] = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _Cut((_DIGITS, _byte_level(use_regex=True))),
    "llama-bpe": _Cut(_like_tiktoken(r"\p{N}{1,3}"), ignore_merges=True, adds_bos=True),
    "qwen2": _Cut(_like_tiktoken(r"\p{N}"), normalizer={"type": "NFC"}),
}


def tokenizer_json(path: Path, metadata: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """The value of ``tokenizer.json``. Raises CheckpointUnsupported."""
    vocabulary = _Vocabulary(path, metadata, vocab_size)
    match metadata.get("tokenizer.ggml.model"):
        case "gpt2":
            return _byte_level_bpe(vocabulary)
        case "llama":
            return _sentencepiece_bpe(vocabulary)
        case other:
            raise vocabulary.refuse(f"tokenizer {other!r} is not supported; supported: gpt2, llama")


class _Vocabulary:
    """The tokens of one file, checked."""

    def __init__(self, path: Path, metadata: Mapping[str, Any], vocab_size: int) -> None:
        self._path, self._metadata = path, metadata
        self.tokens: list[str] = self._texts("tokens")
        self.types = self._list("token_type", int, default=[1] * len(self.tokens))
        if not 0 < len(self.tokens) <= vocab_size:
            raise self.refuse(f"{len(self.tokens)} tokens for a model of {vocab_size}")
        if len(self.types) != len(self.tokens):
            raise self.refuse(f"{len(self.types)} token types for {len(self.tokens)} tokens")
        # Unused tokens have no text: nothing may ever become one.
        self.ids = {text: id_ for id_, text in enumerate(self.tokens) if self.types[id_] != _UNUSED}
        if len(self.ids) != len(self.types) - self.types.count(_UNUSED):
            twice = next(text for id_, text in enumerate(self.tokens) if self.ids.get(text, id_) != id_)
            raise self.refuse(f"token {twice[:40]!r} comes twice")

    @property
    def removes_extra_spaces(self) -> bool:
        """Of a SentencePiece file alone (``tokenizer_model.py``): llama.cpp removes none, whatever GGUF says."""
        return self._metadata.get(REMOVES_EXTRA_SPACES) is True

    def refuse(self, what: str) -> CheckpointUnsupported:
        return CheckpointUnsupported(f"{self._path}: {what}")

    def get(self, key: str, default: Any) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}", default)

    def added_tokens(self, special_types: Sequence[int]) -> list[dict[str, Any]]:
        """Tokens that are found in the text as they are written, before it is cut."""
        return [
            {
                "id": id_,
                "content": self.tokens[id_],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": type_ in special_types,
            }
            for id_, type_ in enumerate(self.types)
            if type_ in (*special_types, _USER_DEFINED) and self.tokens[id_]
        ]

    def post_processor(self, adds_bos: bool) -> dict[str, Any] | None:
        """What puts the begin and end tokens around a text."""
        wanted = (("bos", self.get("add_bos_token", adds_bos)), ("eos", self.get("add_eos_token", False)))
        around = {kind: self._special(kind) for kind, is_added in wanted if is_added}
        if not around:
            return None

        def template(sequence: str, type_id: int) -> list[dict[str, Any]]:
            pieces: list[dict[str, Any]] = [{"Sequence": {"id": sequence, "type_id": type_id}}]
            if "bos" in around:
                pieces.insert(0, {"SpecialToken": {"id": around["bos"][0], "type_id": type_id}})
            if "eos" in around:
                pieces.append({"SpecialToken": {"id": around["eos"][0], "type_id": type_id}})
            return pieces

        return {
            "type": "TemplateProcessing",
            "single": template("A", 0),
            "pair": template("A", 0) + template("B", 1),
            "special_tokens": {
                text: {"id": text, "ids": [id_], "tokens": [text]} for text, id_ in around.values()
            },
        }

    def merges(self) -> list[list[str]]:
        pairs = []
        for text in self._texts("merges"):
            pair = text.split(" ")
            if len(pair) != 2 or not {*pair, "".join(pair)} <= self.ids.keys():
                raise self.refuse(f"merge {text[:80]!r} is not of two tokens into a third")
            pairs.append(pair)
        return pairs

    def scores(self) -> list[float]:
        scores = self._list("scores", float, default=[])
        if len(scores) != len(self.tokens):
            raise self.refuse(f"{len(scores)} token scores for {len(self.tokens)} tokens")
        return scores

    def text_of(self, key: str) -> str | None:
        """The text of the token whose id the file gives under ``key``."""
        id_ = self.get(key, None)
        if id_ is None:
            return None
        if type(id_) is not int or not 0 <= id_ < len(self.tokens):
            raise self.refuse(f"tokenizer.ggml.{key} {id_!r} is not a token")
        return self.tokens[id_]

    def _special(self, kind: str) -> tuple[str, int]:
        if (text := self.text_of(f"{kind}_token_id")) is None:
            raise self.refuse(f"its tokenizer adds a {kind} token and does not say which")
        return text, self.tokens.index(text)

    def _texts(self, key: str) -> list[str]:
        return self._list(key, str, default=None)

    def _list(self, key: str, kind: type, default: list[Any] | None) -> list[Any]:
        value = self.get(key, default)
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise self.refuse(
                f"tokenizer.ggml.{key} is {'missing' if value is None else 'not what GGUF says'}"
            )
        return value


def _byte_level_bpe(vocabulary: _Vocabulary) -> dict[str, Any]:
    pre = vocabulary.get("pre", None)
    if pre not in _CUTS:
        known = ", ".join(_CUTS)
        detail = "says nothing of its pre-tokenizer; convert it again with a current llama.cpp" if pre is None else (
            f"pre-tokenizer {pre!r} is not supported; supported: {known}"
        )  # fmt: skip
        raise vocabulary.refuse(detail)
    cut = _CUTS[pre]
    pre_tokenizers = list(cut.pre_tokenizers)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added_tokens((_CONTROL,)),
        "normalizer": cut.normalizer,
        "pre_tokenizer": (
            pre_tokenizers[0]
            if len(pre_tokenizers) == 1
            else {"type": "Sequence", "pretokenizers": pre_tokenizers}
        ),
        "post_processor": vocabulary.post_processor(cut.adds_bos),
        "decoder": _byte_level(use_regex=True),
        "model": _bpe(vocabulary.ids, vocabulary.merges(), ignore_merges=cut.ignore_merges),
    }


def _sentencepiece_bpe(vocabulary: _Vocabulary) -> dict[str, Any]:
    scores = vocabulary.scores()
    mergeable = {
        text: scores[id_]
        for text, id_ in vocabulary.ids.items()
        if vocabulary.types[id_] not in (_UNKNOWN, _CONTROL, _BYTE)
    }
    to_visible_space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    from_visible_space = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    decoders: list[dict[str, Any]] = [from_visible_space, {"type": "ByteFallback"}, {"type": "Fuse"}]
    normalizers: list[dict[str, Any]] = [to_visible_space]
    if vocabulary.removes_extra_spaces:
        for spaces, content in ((r"\A +|[ ▁]+\z", ""), (" {2,}", " ")):
            cleaning = {"type": "Replace", "pattern": {"Regex": spaces}, "content": content}
            normalizers.insert(-1, cleaning)
    if vocabulary.get("add_space_prefix", True):
        normalizers.insert(-1, {"type": "Prepend", "prepend": _SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added_tokens((_CONTROL, _UNKNOWN)),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": vocabulary.post_processor(adds_bos=True),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            vocabulary.ids,
            _merges_by_score(vocabulary.ids, mergeable),
            unk_token=vocabulary.text_of("unknown_token_id"),
            byte_fallback=True,
        ),
    }


def _merges_by_score(ids: Mapping[str, int], scores: Mapping[str, float]) -> list[list[str]]:
    """SentencePiece merges the pair whose whole scores highest; ``tokenizers`` wants the pairs in that order."""
    found = []
    for whole, score in scores.items():
        cuts = ((whole[:at], whole[at:]) for at in range(1, len(whole)))
        pairs = [(left, right) for left, right in cuts if left in scores and right in scores]
        pairs.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found += [(score, left, right) for left, right in pairs]
    # Stable, so that equal keys keep the order above: transformers' generate_merges does the same.
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [[left, right] for _, left, right in found]


def _bpe(
    ids: Mapping[str, int],
    merges: list[list[str]],
    *,
    unk_token: str | None = None,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk_token,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": unk_token is not None,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": dict(ids),
        "merges": merges,
    }
