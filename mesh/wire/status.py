"""Our errors as gRPC statuses and back: one table, so that a refusal ends with the same exit code on the other side.

The server sends the class as a status code and the message as its details; the client raises the class again. What
gRPC itself reports (nobody listens, too late) becomes one of ours too, so that nothing else leaves a client.
"""

from __future__ import annotations

import grpc
import grpc.aio

from mesh.errors import (
    IntegrityError,
    LicenseRefused,
    MeshError,
    NotAuthorised,
    NotEnoughDisk,
    NotEnoughMemory,
    NotFound,
    Temporary,
    Unreachable,
    UsageError,
)

MAX_DETAIL_CHARS = 500  # details travel in a header, and end as one line on a terminal

# A subclass is sent as its nearest ancestor here. Where two share a code, the first is the one raised again; they have
# the same exit code.
_TABLE: tuple[tuple[type[MeshError], grpc.StatusCode], ...] = (
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (IntegrityError, grpc.StatusCode.DATA_LOSS),
    (LicenseRefused, grpc.StatusCode.PERMISSION_DENIED),
    (Unreachable, grpc.StatusCode.UNAVAILABLE),
    (NotEnoughMemory, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (NotEnoughDisk, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (NotAuthorised, grpc.StatusCode.UNAUTHENTICATED),
    # "The client should retry at a higher level, restarting its read-modify-write sequence": offer, then acceptance.
    (Temporary, grpc.StatusCode.ABORTED),
    (MeshError, grpc.StatusCode.INTERNAL),
)
_CODES = dict(_TABLE)
_CLASSES = {code: kind for kind, code in reversed(_TABLE)}

# What only gRPC itself says.
_FOREIGN: dict[grpc.StatusCode, tuple[type[MeshError], str]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: (Unreachable, "no answer in time"),
    grpc.StatusCode.CANCELLED: (Unreachable, "the other side ended the call"),
    grpc.StatusCode.UNIMPLEMENTED: (
        UsageError,
        "the other side does not know this call; install the same version of llama-mesh on both",
    ),
    grpc.StatusCode.FAILED_PRECONDITION: (Temporary, ""),
}


def status_of(error: MeshError) -> tuple[grpc.StatusCode, str]:
    """The code and details with which a server refuses."""
    kind = next(kind for kind in type(error).__mro__ if kind in _CODES)
    return _CODES[kind], _one_line(str(error))


def error_from(error: grpc.aio.AioRpcError) -> MeshError:
    """The error that the other side raised, or what gRPC's own trouble means; for ``raise … from``."""
    code, details = error.code(), _one_line(error.details() or "")
    if code in _FOREIGN:
        foreign, words = _FOREIGN[code]
        return foreign(words or details or _words_for(code))
    kind: type[MeshError] = _CLASSES.get(code, MeshError)
    if kind is Unreachable:
        details = details.removeprefix("failed to connect to all addresses; last error: ")
    return kind(details or _words_for(code))


def _words_for(code: grpc.StatusCode) -> str:
    return str(code.name).lower().replace("_", " ")


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_DETAIL_CHARS else line[: MAX_DETAIL_CHARS - 1] + "…"
