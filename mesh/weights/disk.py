"""A disk that is full, said in one line.

The system reports it from a ``write`` without saying which file; the one who writes knows.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mesh.errors import NotEnoughDisk

# EFBIG: a file-size limit (ulimit -f) or a file system that cannot hold a file so large.
FULL_DISK = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})


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
