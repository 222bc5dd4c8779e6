import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import NotAuthorised
from mesh.token import JoinToken, secret_digest

tokens = st.builds(JoinToken, st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32))


@given(tokens)
def test_parse_is_the_inverse_of_encode(token: JoinToken) -> None:
    assert JoinToken.parse(token.encode()) == token


@given(tokens, st.integers(0, 69), st.characters(categories=["L", "N", "P", "Z"]))
def test_a_changed_character_gives_another_token_or_is_refused(
    token: JoinToken, index: int, other: str
) -> None:
    text = token.encode()
    changed = text[:index] + other + text[index + 1 :]
    if changed.strip() == text:
        return
    with contextlib.suppress(NotAuthorised):
        assert JoinToken.parse(changed) != token


def test_spelling_is_frozen() -> None:
    # Volunteers keep join lines in scripts and notes; another spelling would lock them out.
    token = JoinToken(bytes(range(16)), bytes(range(16, 48)))
    assert token.encode() == "mesh1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4v"


def test_surrounding_space_of_a_pasted_line_does_no_harm() -> None:
    token = JoinToken.generate(b"d" * 32)
    assert JoinToken.parse(f"  {token.encode()}\n") == token


@pytest.mark.parametrize("text", ["", "mesh1_", "mesh2_" + "A" * 64, "A" * 64, "mesh1_" + "A" * 63, "mesh1_" + "A" * 65,
                                  "mesh1_" + "+" * 64, "mesh1_" + "A" * 60 + "===="])  # fmt: skip
def test_nonsense_is_refused_with_what_to_do(text: str) -> None:
    with pytest.raises(NotAuthorised, match="copy the"):
        JoinToken.parse(text)


def test_no_message_or_repr_shows_the_secret() -> None:
    token = JoinToken(b"secret-is-secret", b"d" * 32)
    text = token.encode()
    with pytest.raises(NotAuthorised) as refused:
        JoinToken.parse(text + "x")
    for shown in (repr(token), str(token), str(refused.value)):
        assert "secret-is-secret" not in shown
        assert text[6:28] not in shown


def test_generated_tokens_differ_and_carry_the_trust_digest() -> None:
    one, two = (JoinToken.generate(b"d" * 32) for _ in range(2))
    assert one.secret != two.secret
    assert one.trust_digest == two.trust_digest == b"d" * 32


def test_what_is_kept_of_a_secret_is_its_sha256() -> None:
    assert secret_digest(b"s" * 16) == hashlib.sha256(b"s" * 16).digest()
