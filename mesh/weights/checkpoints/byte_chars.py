"""The visible characters that byte-level BPE vocabularies write bytes as.

Follows GPT-2's ``bytes_to_unicode``: a printable byte of Latin-1 is itself, every other the next character from U+0100.
"""

from __future__ import annotations


def _characters() -> tuple[str, ...]:
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))


_CHARACTERS = _characters()


def byte_text(data: bytes) -> str:
    """``b" the"`` -> ``"Ġthe"``."""
    return "".join(_CHARACTERS[byte] for byte in data)
