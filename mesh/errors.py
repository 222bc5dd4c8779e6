"""Every error this project raises on purpose, and whose fault each one is.

::

    MeshError                     1   something went wrong; the message says what to do
    ├── UsageError                2   the caller asked for something impossible
    ├── CheckpointUnsupported     2   a model we cannot run yet, refused by name
    ├── NotFound                  3   a file, model or node that is not there
    ├── IntegrityError            4   bytes are not what their publisher signed
    │   ├── ManifestInvalid           the manifest breaks a rule of its format
    │   ├── SignatureInvalid          the signature does not fit the bytes
    │   ├── UnknownKey                signed by a key that is not trusted here
    │   ├── ShardCorrupt              a shard's bytes do not hash to its address
    │   ├── TorrentMismatch           a torrent that differs from its manifest
    │   └── CatalogRefused            the catalog breaks a rule of TUF: who signed, how many, which version
    │       └── CatalogExpired            nobody renewed it in time, or somebody holds back what is newer
    ├── LicenseRefused            5   licence or policy forbids it
    ├── Unreachable               6   a peer does not answer
    ├── NotEnoughMemory           7   the machine is too small for it
    ├── NotEnoughDisk             7   the disk (or a quota) is too small for it
    ├── NotAuthorised             8   token or key refused
    ├── Unhealthy                 9   it ran, and found something wrong
    ├── RequestRefused            1   a client's request breaks a rule (coordinator: HTTP 4xx)
    └── Temporary                75   try again later

An error says *what*, *where*, *what was expected* and *what to do*, on one line. ``exit_code`` is what a command
returns for it (documented in README). ``assert`` is for our own mistakes only.
"""

from __future__ import annotations


class MeshError(Exception):
    """Base of all deliberate errors; ``str(error)`` is one line fit for a user."""

    exit_code = 1


class UsageError(MeshError):
    exit_code = 2


class CheckpointUnsupported(UsageError):
    """An architecture, tensor type, tokenizer or RoPE scaling that we refuse by name."""


class NotFound(MeshError):
    exit_code = 3


class IntegrityError(MeshError):
    exit_code = 4


class ManifestInvalid(IntegrityError):
    pass


class SignatureInvalid(IntegrityError):
    pass


class UnknownKey(IntegrityError):
    """Attributes: ``key_id``, the fingerprint that signed."""

    def __init__(self, key_id: str, message: str) -> None:
        super().__init__(message)
        self.key_id = key_id


class ShardCorrupt(IntegrityError):
    """Attributes: ``shard`` (file name), ``expected`` and ``actual`` (hex roots, or sizes in words)."""

    def __init__(self, shard: str, expected: str, actual: str, advice: str = "fetch it again") -> None:
        super().__init__(f"shard {shard}: expected {expected}, found {actual}; {advice}")
        self.shard, self.expected, self.actual = shard, expected, actual


class TorrentMismatch(IntegrityError):
    pass


class CatalogRefused(IntegrityError):
    pass


class CatalogExpired(CatalogRefused):
    pass


class LicenseRefused(MeshError):
    exit_code = 5


class Unreachable(MeshError):
    exit_code = 6


class NotEnoughMemory(MeshError):
    exit_code = 7


class NotEnoughDisk(MeshError):
    exit_code = 7


class NotAuthorised(MeshError):
    exit_code = 8


class Unhealthy(MeshError):
    exit_code = 9


class RequestRefused(MeshError):
    """A client's request that breaks a rule.

    Attributes follow the OpenAI error body: ``status`` (HTTP), ``code``, ``param``; ``retry_after`` in seconds
    where trying again can help, ``is_hopeless`` where it cannot although the status says otherwise.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_value",
        param: str | None = None,
        retry_after: int | None = None,
        is_hopeless: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after
        self.is_hopeless = is_hopeless


class Temporary(MeshError):
    exit_code = 75
