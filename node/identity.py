"""Who a node is: an Ed25519 key made on its first run; the node id is the key's fingerprint.

A copied data directory would make two nodes of one identity, so a running node holds a lock on it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mesh.errors import UsageError
from mesh.weights.signing import PrivateKey


@contextmanager
def locked_data_directory(directory: Path) -> Iterator[Path]:
    """Create and hold the node's data directory. Raises UsageError if another node holds it."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise UsageError(
                f"{directory} is in use by another mesh-node; stop it, or give this one its own --data DIR"
            ) from exc
        yield directory
    finally:
        os.close(lock)


def load_or_create(directory: Path) -> PrivateKey:
    path = directory / "identity.key"
    if not path.exists():
        PrivateKey.generate().save(path)
    return PrivateKey.load(path)
