"""What the join story needs and the daemon made: values and thin objects, nothing that acts by itself."""

from __future__ import annotations

from dataclasses import dataclass

import grpc.aio

from mesh.clock import Clock
from mesh.model.engines import EngineChoice
from mesh.swarm.session import SwarmSession
from mesh.weights.releases.holdings import Holdings
from mesh.weights.trust.acceptance_book import AcceptanceBook
from mesh.weights.trust.signing import PrivateKey
from node.reporting import Reporter


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What the story needs and the daemon made."""

    key: PrivateKey  # whose fingerprint the node id is
    incarnation: int
    device: str
    engine: EngineChoice
    channel: grpc.aio.Channel
    swarm: SwarmSession
    holdings: Holdings
    licenses: AcceptanceBook
    reporter: Reporter
    clock: Clock

    @property
    def node_id(self) -> str:
        return self.key.public.key_id
