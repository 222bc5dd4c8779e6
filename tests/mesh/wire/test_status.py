from collections.abc import Iterator

import grpc
import grpc.aio
import pytest

from mesh import errors
from mesh.errors import MeshError, NotFound, Unreachable
from mesh.wire.status import MAX_DETAIL_CHARS, error_from, status_of


def every_class(base: type[MeshError] = MeshError) -> Iterator[type[MeshError]]:
    yield base
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from every_class(kind)


def make(kind: type[MeshError], message: str) -> MeshError:
    error = kind.__new__(kind, message)  # some take facts instead of a message
    Exception.__init__(error, message)
    return error


def received(code: grpc.StatusCode, details: str | None) -> MeshError:
    empty = grpc.aio.Metadata()
    return error_from(grpc.aio.AioRpcError(code, empty, empty, details=details))


NEVER_SENT = (errors.Unhealthy, errors.RequestRefused)  # one is a command's verdict, the other speaks HTTP


@pytest.mark.parametrize("kind", [kind for kind in every_class() if kind not in NEVER_SENT])
def test_a_refusal_ends_with_the_same_words_and_exit_code_on_the_other_side(kind: type[MeshError]) -> None:
    there = received(*status_of(make(kind, "what, where, expected and what to do")))
    assert str(there) == "what, where, expected and what to do"
    assert there.exit_code == kind.exit_code


def test_an_error_with_facts_is_sent_by_its_message() -> None:
    error = errors.ShardCorrupt("embed.safetensors", "aa", "bb")
    assert received(*status_of(error)).args == (str(error),)


def test_nobody_there_reads_as_one_short_line() -> None:
    error = received(
        grpc.StatusCode.UNAVAILABLE,
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
        "Failed to connect to remote host: connect: Connection refused (111)",
    )
    assert isinstance(error, Unreachable)
    assert "Connection refused" in str(error)
    assert "all addresses" not in str(error)


@pytest.mark.parametrize("code", [grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED])
def test_no_answer_is_unreachable(code: grpc.StatusCode) -> None:
    assert isinstance(received(code, "whatever"), Unreachable)


def test_an_unknown_call_names_the_cure() -> None:
    assert "same version" in str(received(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))


@pytest.mark.parametrize("code", [*grpc.StatusCode])
@pytest.mark.parametrize("details", [None, "", "a\nb"])
def test_every_status_becomes_a_mesh_error_of_one_line_that_is_not_empty(
    code: grpc.StatusCode, details: str | None
) -> None:
    error = received(code, details)
    assert isinstance(error, MeshError)
    assert str(error)
    assert "\n" not in str(error)


def test_details_are_one_line_of_bounded_length() -> None:
    _, details = status_of(NotFound("x\n" * 10_000))
    assert len(details) == MAX_DETAIL_CHARS
    assert "\n" not in details
