"""What an operator chose, checked once at the door. Flags > ``MESH_*`` environment > defaults (resolved by the CLI)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from coordinator.topology import Endpoint
from mesh.errors import UsageError
from mesh.wire.channel import is_loopback, require_loopback

LEAST_SESSION_TOKENS = 2  # one that is asked, one that is answered


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    releases: tuple[Path, ...]  # directories that `mesh pack` wrote; at least one
    trust_file: Path | None  # None: every public key the operator keeps
    http: Endpoint  # OpenAI-compatible API; port 0 is any free one
    grpc: Endpoint  # for nodes and seeders
    advertise: str | None  # host that the join line names, where --grpc listens on every interface
    data: Path
    lease_seconds: float
    make_token: bool
    insecure: bool
    catalog: Path | None = (
        None  # TUF repository that lists the release; None: a plain list of keys is believed
    )
    online_keys: tuple[str, ...] = ()  # of the catalog; empty: any that the operator keeps
    max_session_tokens: int | None = None  # prompt and answer of one session; None: the model's context
    has_api_keys: bool = False  # some key is on record: clients are asked for one

    def __post_init__(self) -> None:
        if not is_loopback(self.http[0]) and not (self.has_api_keys or self.insecure):
            raise UsageError(
                f"--listen {self.http[0]}: without an API key only loopback is allowed, or whoever reaches it may ask; "
                "make one with mesh-coordinator key create, or pass --insecure inside a network you alone control"
            )
        require_loopback(self.grpc[0], what="--grpc", insecure=self.insecure)
        if is_wildcard(self.grpc[0]) and self.advertise is None:
            raise UsageError(
                f"--grpc {self.grpc[0]} listens on every address: say with --advertise HOST which one nodes shall dial"
            )
        if not 0.5 <= self.lease_seconds <= 3600:
            raise UsageError(f"--lease {self.lease_seconds:g}: expected 0.5 to 3600 seconds")
        if self.max_session_tokens is not None and self.max_session_tokens < LEAST_SESSION_TOKENS:
            raise UsageError(
                f"--max-session-tokens {self.max_session_tokens}: expected {LEAST_SESSION_TOKENS} or more, "
                "for a prompt and its answer"
            )

    def reachable(self, endpoint: Endpoint) -> Endpoint:
        """The address to tell others for one that we listen on."""
        host, port = endpoint
        return (self.advertise or "127.0.0.1" if is_wildcard(host) else host, port)


def is_wildcard(host: str) -> bool:
    """Whether listening there means listening on every interface."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
