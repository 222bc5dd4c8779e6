"""Who a node is: an Ed25519 key made on its first run; the node id is the key's fingerprint."""

from __future__ import annotations

from pathlib import Path

from mesh.weights.trust.signing import PrivateKey


def load_or_create(directory: Path) -> PrivateKey:
    path = directory / "identity.key"
    if not path.exists():
        PrivateKey.generate().save(path)
    return PrivateKey.load(path)
