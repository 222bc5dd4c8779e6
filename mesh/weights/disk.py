"""A disk that is full, said in one line.

The system reports it without saying which file; the one who writes knows.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

from mesh.errors import NotEnoughDisk

# EFBIG: a file-size limit (ulimit -f) or a file system that cannot hold a file so large.
FULL_DISK = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})

_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}  # it is a favour to us, no need


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn ENOSPC, EFBIG and EDQUOT into NotEnoughDisk that names ``path``."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in FULL_DISK:
            raise
        raise NotEnoughDisk(
            f"{path}: {exc.strerror}; make room or choose another place, then run it again"
        ) from exc


def reserve(file: BufferedWriter, size: int) -> None:
    """Have all of a file's room set aside: one request costs less than many, and a disk that is too full says so now."""
    if not size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as exc:
        if exc.errno not in _CANNOT_RESERVE:
            raise
