"""Text that leaves token by token is the text of the whole, and never ends inside a code point."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models

from mesh.errors import ShardCorrupt
from mesh.model.tokenizer import Tokenizer
from mesh.weights.shards.shard import read_shard
from tests.support.aux_shards import aux_shard
from tests.support.releases import PackedRelease
from tests.support.tiny_models import SPECIALS, byte_level_tokenizer

REPLACEMENT = "\ufffd"
START, END = 257, 258  # <|im_start|>, <|im_end|>
# Text of every width in UTF-8, joined emoji, combining marks; U+FFFD itself is written on purpose now and then.
texts = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("aé漢😀👨‍👩‍👧\u0301 \n" + REPLACEMENT))
)


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    """Ids 0 to 255 are the bytes themselves."""
    return Tokenizer.from_aux(aux_shard({"tokenizer.json": json.dumps(byte_level_tokenizer()).encode()}))


@pytest.fixture(scope="module")
def byte_fallback() -> Tokenizer:
    """As Llama 2's: pieces with ▁ for a space, bytes as <0x..>, a leading space stripped."""
    vocab = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256)), ("▁a", -1.0), ("b", -1.0)]
    tokenizer = HfTokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(tokenizer)


@pytest.fixture(scope="module")
def real(real_release: PackedRelease) -> Tokenizer:
    ref = real_release.manifest.shard("aux")
    return Tokenizer.from_aux(read_shard(real_release.open().shard_path(ref), ref))


def pieces_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    decoder = tokenizer.decoder()
    return [*(decoder.push(token_id) for token_id in ids), decoder.flush()]


@given(text=texts)
@example("👨‍👩‍👧" * 3)
@example(REPLACEMENT * 40)
def test_streamed_text_is_the_text(byte_level: Tokenizer, text: str) -> None:
    pieces = pieces_of(byte_level, byte_level.encode(text))
    assert "".join(pieces) == text
    if REPLACEMENT not in text:
        assert REPLACEMENT not in "".join(pieces)


@given(text=texts)
def test_each_code_point_leaves_with_its_last_byte(byte_level: Tokenizer, text: str) -> None:
    text = text.replace(
        REPLACEMENT, ""
    )  # cannot be told from bytes that are no text, so it waits for what follows
    decoder = byte_level.decoder()
    for character in text:
        *first, last = byte_level.encode(character)
        assert [decoder.push(token_id) for token_id in first] == [""] * len(first)
        assert decoder.push(last) == character


@settings(deadline=None)
@given(text=texts, data=st.data())
def test_answer_cut_inside_a_code_point_ends_as_the_whole_text_would(
    byte_level: Tokenizer, text: str, data: st.DataObject
) -> None:
    ids = byte_level.encode(text)
    ids = ids[: data.draw(st.integers(0, len(ids)))]
    assert "".join(pieces_of(byte_level, ids)) == byte_level.decode(ids)


@given(ids=st.lists(st.integers(0, 255), max_size=60))
@example([0xF0, 0x9F] * 20)
@example([0x80] * 50 + [0x41])
def test_bytes_that_are_no_text_are_replaced_as_in_the_whole(byte_level: Tokenizer, ids: list[int]) -> None:
    assert "".join(pieces_of(byte_level, ids)) == byte_level.decode(ids)


@given(text=texts, data=st.data())
def test_special_tokens_are_silent_wherever_they_stand(
    byte_level: Tokenizer, text: str, data: st.DataObject
) -> None:
    ids = byte_level.encode(text)
    for _ in range(data.draw(st.integers(1, 4))):
        ids.insert(data.draw(st.integers(0, len(ids))), data.draw(st.sampled_from([256, START, END])))
    assert "".join(pieces_of(byte_level, ids)) == text == byte_level.decode(ids)


def test_long_garbage_does_not_pile_up(byte_level: Tokenizer) -> None:
    decoder = byte_level.decoder()
    shown = [decoder.push(0x80) for _ in range(1000)]
    assert len("".join(shown)) > 950


@given(text=st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("ab é😀")), max_size=30))
def test_byte_fallback_pieces_stream_as_the_whole(byte_fallback: Tokenizer, text: str) -> None:
    pieces = {" a": 257, "b": 258}
    ids = []
    for part in re.split("( a|b)", text):
        ids += [pieces[part]] if part in pieces else [1 + byte for byte in part.encode()]
    assert "".join(pieces_of(byte_fallback, ids)) == byte_fallback.decode(ids) == text.removeprefix(" ")


@given(ids=st.lists(st.integers(0, 258), max_size=40))
def test_byte_fallback_takes_broken_bytes_anywhere(byte_fallback: Tokenizer, ids: list[int]) -> None:
    streamed, whole = "".join(pieces_of(byte_fallback, ids)), byte_fallback.decode(ids)
    # The whole replaces every byte of a run that breaks somewhere; a stream has shown its sound beginning by then.
    assert streamed == whole or REPLACEMENT in whole


def test_byte_fallback_keeps_spaces_between_pieces(byte_fallback: Tokenizer) -> None:
    ids = [257, 258, 257, 257]  # ▁a b ▁a ▁a
    assert pieces_of(byte_fallback, ids) == ["a", "b", " a", " a", ""]


@pytest.mark.real_model
@settings(deadline=None, max_examples=200)
@given(text=texts)
def test_real_tokenizer_streams_text(real: Tokenizer, text: str) -> None:
    ids = real.encode(text, add_special=False)
    assert "".join(pieces_of(real, ids)) == real.decode(ids)


@pytest.mark.real_model
@settings(deadline=None, max_examples=200)
@given(ids=st.lists(st.integers(0, 49151), max_size=40))
def test_real_tokenizer_streams_any_ids(real: Tokenizer, ids: list[int]) -> None:
    assert "".join(pieces_of(real, ids)) == real.decode(ids)


def test_special_tokens_in_a_prompt_become_their_ids(byte_level: Tokenizer) -> None:
    ids = byte_level.encode(f"{SPECIALS[1]}user\nhi{SPECIALS[2]}", add_special=False)
    assert (ids[0], ids[-1]) == (START, END)
    assert byte_level.token(START) == SPECIALS[1]
    assert byte_level.token(10_000) is None
    assert byte_level.vocab_size == 259


def test_tokenizer_that_pads_or_truncates_is_made_not_to() -> None:
    content = byte_level_tokenizer()
    content["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    content["padding"] = {
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x",
        "pad_to_multiple_of": None,
    }  # fmt: skip
    tokenizer = Tokenizer.from_aux(aux_shard({"tokenizer.json": json.dumps(content).encode()}))
    assert len(tokenizer.encode("123456")) == 6
    assert len(tokenizer.encode("1")) == 1


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0", "model": {"type": "Nonsense"}}']
)
def test_unreadable_tokenizer_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(ShardCorrupt, match=r"^shard aux: expected a readable tokenizer\.json, found [^\n]+$"):
        Tokenizer.from_aux(aux_shard({"tokenizer.json": content}))


def test_release_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(ShardCorrupt, match=r"expected a tokenizer\.json, found none"):
        Tokenizer.from_aux(aux_shard({"LICENSE": b"free"}))


# -- bytes of single tokens


@given(text=texts)
def test_bytes_of_the_tokens_are_the_bytes_of_the_text(byte_level: Tokenizer, text: str) -> None:
    ids = byte_level.encode(text, add_special=False)
    assert b"".join(map(byte_level.token_bytes, ids)) == text.encode()


def test_bytes_of_special_tokens_are_their_names_and_a_hole_has_none(byte_level: Tokenizer) -> None:
    assert byte_level.token_bytes(START) == b"<|im_start|>"
    assert byte_level.token_bytes(299) == b""


def test_bytes_of_sentencepiece_tokens(byte_fallback: Tokenizer) -> None:
    ids = [1 + 0xC3, 1 + 0xA9, 257, 258]
    assert [byte_fallback.token_bytes(token_id) for token_id in ids] == [b"\xc3", b"\xa9", b" a", b"b"]


@pytest.mark.real_model
@settings(deadline=None)
@given(text=texts)
def test_bytes_of_real_tokens_are_the_bytes_of_their_text(real: Tokenizer, text: str) -> None:
    ids = real.encode(text, add_special=False)  # a byte that its vocabulary lacks is lost here already
    told = b"".join(map(real.token_bytes, ids)).decode(errors="replace")
    assert told == real.decode(ids, show_special=True)


def test_special_tokens_are_shown_when_asked_for(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("<|im_start|>é<|im_end|>", add_special=False)
    assert byte_level.decode(ids, show_special=True) == "<|im_start|>é<|im_end|>"
    assert byte_level.decode(ids) == "é"
