"""The join token: all that a volunteer has to be told, in one word.

    mesh1_<base64url of 16 secret bytes and the SHA-256 of the trust root>

The secret lets the node in; the digest tells it whose signatures to believe, so that it never learns whom to trust from
the coordinator that it checks. Knows neither who made a token nor whether it is still valid.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field

from mesh.errors import NotAuthorised

SECRET_BYTES = 16  # 128 bits: nobody guesses it, so its plain SHA-256 may be stored
DIGEST_BYTES = 32
PREFIX = "mesh1_"
BODY_CHARS = 64  # 48 bytes in base64url: no padding, so one spelling per token
_BODY = re.compile(rf"[A-Za-z0-9_-]{{{BODY_CHARS}}}")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """``JoinToken.parse(token.encode()) == token``. Its repr does not show the secret: it may end up in a log."""

    secret: bytes = field(repr=False)
    trust_digest: bytes  # SHA-256 of the trust root's exact bytes

    def __post_init__(self) -> None:
        assert len(self.secret) == SECRET_BYTES, "a secret of another length"
        assert len(self.trust_digest) == DIGEST_BYTES, "not a SHA-256"

    @classmethod
    def generate(cls, trust_digest: bytes) -> JoinToken:
        return cls(secrets.token_bytes(SECRET_BYTES), trust_digest)

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Raises NotAuthorised; the message never repeats what was given."""
        text = text.strip()
        body = text.removeprefix(PREFIX)
        if body == text or not _BODY.fullmatch(body):
            raise NotAuthorised(
                f"the join token is not whole: expected {PREFIX} and {BODY_CHARS} characters after it; "
                "copy the line that mesh-coordinator printed"
            )
        data = base64.urlsafe_b64decode(body)
        return cls(data[:SECRET_BYTES], data[SECRET_BYTES:])

    def encode(self) -> str:
        return PREFIX + base64.urlsafe_b64encode(self.secret + self.trust_digest).decode("ascii")


def secret_digest(secret: bytes) -> bytes:
    """What a coordinator keeps of a token: the SHA-256 of its secret."""
    return hashlib.sha256(secret).digest()
