"""The SHA-1 piece hashes of one file, for the half of a hybrid torrent that BitTorrent v1 clients read.

Like ``RootHasher`` it is fed chunks of any size. The last piece is hashed as if zeros followed the file, which is what
the torrent's pad file says (BEP 47). SHA-1 protects nobody here: we never verify by it, and the publisher signs these
hashes, so that a v1 client gets what was meant or whatever it finds by breaking SHA-1.
"""

from __future__ import annotations

import hashlib


class V1PieceHasher:
    def __init__(self, piece_length: int) -> None:
        self._piece_length = piece_length
        self._pieces = bytearray()  # 20 bytes for each full piece
        self._piece = hashlib.sha1(usedforsecurity=False)
        self._filled = 0  # bytes in it

    def update(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        while view:
            part = view[: self._piece_length - self._filled]
            self._piece.update(part)
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == self._piece_length:
                self._pieces += self._piece.digest()
                self._piece, self._filled = hashlib.sha1(usedforsecurity=False), 0

    def pieces(self) -> bytes:
        """The hashes of what was seen so far, end to end."""
        if not self._filled:
            return bytes(self._pieces)
        last = self._piece.copy()
        last.update(bytes(self._piece_length - self._filled))
        return bytes(self._pieces) + last.digest()
