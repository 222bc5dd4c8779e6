"""Locks between processes, kept by the kernel: it lets go when a process ends, however it ends."""

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

    Two daemons on one state would each undo the other's.
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


@contextmanager
def locked_file(file: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold ``file``, waiting for whoever holds it now; ``shared`` with all who hold it so."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def is_locked(file: Path) -> bool:
    """Whether anybody, this process included, holds ``file``."""
    try:
        lock = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)
