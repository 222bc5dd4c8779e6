"""A directory that one process holds at a time: two daemons on one state would each undo the other's."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mesh.errors import UsageError


@contextmanager
def locked_directory(directory: Path, program: str) -> Iterator[None]:
    """Make ``directory`` (private to the user) and hold it. Raises UsageError if another process does.

    The kernel lets go when the process ends, however it ends.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise UsageError(
                f"{directory} is in use by another {program}; stop it, or give this one its own --data DIR"
            ) from exc
        yield
    finally:
        os.close(lock)
