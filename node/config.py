"""What a volunteer chose, checked once at the door. Flags > ``MESH_*`` environment > defaults (resolved by the CLI)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mesh.errors import UsageError
from mesh.layers import LayerRange
from mesh.swarm.addresses import Profile
from mesh.swarm.encoding_choice import Encoding
from mesh.token import JoinToken
from mesh.wire.channel import is_loopback, parse_endpoint, require_loopback


@dataclass(frozen=True, slots=True)
class NodeConfig:
    coordinator: str  # host:port
    token: JoinToken
    name: str
    data: Path  # identity and shard store; one node at a time
    trust_file: Path | None  # instead of what the coordinator sends
    memory_bytes: int | None  # for the whole process; None: most of what is free
    device: str  # "auto", "cpu", "cuda:0"
    engine: str  # "auto", "native", "torch"
    threads: int | None  # None: all cores
    layers: LayerRange | None
    model: str | None  # None: whichever the coordinator says needs it most
    listen: tuple[str, int]  # Stage service
    swarm_listen: tuple[str, int]  # BitTorrent
    kv_tokens: int
    max_sessions: int
    max_upload_bytes_per_second: int | None
    store_quota_bytes: int | None  # None: what the store remembers, if anything
    accept_license: str | None  # the id of a licence that the volunteer has read
    assume_yes: bool
    insecure: bool
    wait_seconds: float  # for a coordinator that is not there yet
    json_events: bool
    encoding: Encoding = Encoding.AUTO  # of shards on the way here
    max_download_bytes_per_second: int | None = None
    profile: Profile = Profile.AUTO  # how BitTorrent peers are spoken to

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 64 or not self.name.isprintable():
            raise UsageError(f"--name {self.name[:80]!r}: expected 1 to 64 printable characters")
        host = parse_endpoint(self.coordinator)[0]
        require_loopback(host, what="coordinator", insecure=self.insecure)
        if not is_loopback(host):
            for flag, (host, _) in (("--listen", self.listen), ("--swarm-listen", self.swarm_listen)):
                if is_loopback(host):
                    raise UsageError(
                        f"{flag} {host}: neighbours on other machines cannot reach it; "
                        f"listen on this machine's address, for example {flag} 0.0.0.0:0"
                    )
        if self.kv_tokens < 16:
            raise UsageError(f"--kv-tokens {self.kv_tokens}: expected at least 16")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads}: expected at least 1")
