"""The coordinator's data directory: held by one coordinator at a time, and where others read how to reach it.

lock             held while a coordinator runs
listening.json   where it listened last, and whose signatures its join tokens pin
state.db         join tokens, nodes, audit trail (``coordinator.state``)
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from mesh import strict_json
from mesh.errors import MeshError, NotFound
from mesh.token import DIGEST_BYTES, JoinToken

_LISTENING = "listening.json"
_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Listening:
    """How clients and nodes reach the coordinator that ran here last."""

    http: str  # host:port
    grpc: str  # host:port, as nodes dial it
    trust_digest: str  # hex SHA-256 of the trust root
    release: str  # release id
    model: str

    def join_line(self, token: JoinToken) -> str:
        """What a volunteer pastes."""
        return f"mesh-node join {self.grpc} --token {token.encode()}"


def write_listening(directory: Path, listening: Listening) -> None:
    """Replace the file in one step: a reader sees the old one or the new one."""
    path = directory / _LISTENING
    beside = path.with_suffix(".tmp")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(strict_json.dumps(asdict(listening)) + b"\n")
    beside.replace(path)


def read_listening(directory: Path) -> Listening:
    """Raises NotFound if no coordinator has run here."""
    path = directory / _LISTENING
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as exc:
        raise NotFound(
            f"no coordinator has run with --data {directory}; start one with: mesh-coordinator up --release DIR"
        ) from exc
    try:
        listening = Listening(**strict_json.loads(data, max_bytes=_MAX_BYTES))
        if len(bytes.fromhex(listening.trust_digest)) != DIGEST_BYTES:
            raise ValueError("trust_digest is no SHA-256")
    except (ValueError, TypeError) as exc:
        raise MeshError(f"{path}: {exc}; start the coordinator again to write it anew") from exc
    return listening
