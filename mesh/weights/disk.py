"""Small files read within a bound and replaced whole, and a disk that is full said in one line.

The system reports that without saying which file; the one who writes knows.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

from mesh.errors import NotEnoughDisk, NotFound, UsageError

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


def read_small(path: Path, max_bytes: int, what: str) -> bytes:
    """All of a file that a person named. Raises NotFound, or UsageError for one too large to be a ``what`` file."""
    if not path.is_file():
        raise NotFound(f"{what} file {path} does not exist")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UsageError(f"{what} file {path} is larger than {max_bytes} bytes; that is something else")
    return data


def replace_whole(path: Path, data: bytes) -> None:
    """A reader, or a machine that stops meanwhile, sees the old file or the new one."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with naming_full_disk(path), beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:  # Ctrl-C too: nothing half-written stays
        beside.unlink(missing_ok=True)
        raise
