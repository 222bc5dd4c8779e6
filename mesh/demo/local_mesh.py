"""A whole mesh on this machine, as separate processes: coordinator, seeder and nodes, on free loopback ports.

The demo, the benchmarks and the integration tests all start their mesh here.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from mesh.demo.processes import Child, Event, children, command
from mesh.demo.splitting import Share, shares
from mesh.layers import LayerRange
from mesh.weights.trust.manifest import Manifest

START_SECONDS = 120.0  # generous: a cold disk and an old laptop
FETCH_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class LocalMesh:
    """A mesh that answers. ``stop`` of a child takes it out."""

    url: str  # of the HTTP API, without /v1
    grpc: str  # host:port for nodes
    token: str
    coordinator: Child
    seeder: Child
    nodes: tuple[Child, ...]  # in the order of their layers
    start_spare: Callable[[str, LayerRange, int], Awaitable[Child]]  # name, layers, bytes of memory


@contextlib.asynccontextmanager
async def local_mesh(
    release: Path,
    trust: Path,
    manifest: Manifest,
    scratch: Path,
    *,
    num_nodes: int,
    kv_tokens: int,
    engine: str = "torch",
    on_event: Callable[[str, Event], None] = lambda name, event: None,
) -> AsyncIterator[LocalMesh]:
    """Start everything, yield once every layer is served, stop everything.

    Each node gets just enough memory for its share, so that none could do it alone. Raises MeshError with the last
    words of whichever process did not make it.
    """
    logs = scratch / "logs"
    logs.mkdir(parents=True)
    async with children(logs, on_event) as start:
        coordinator = await start("coordinator", coordinator_command(release, trust, scratch / "coordinator"))
        listening = await coordinator.event("listening", within_seconds=START_SECONDS)
        grpc, token = listening["grpc"], listening["token"]
        seeder = await start("seeder", seeder_command(release, trust, grpc, token))
        nodes = []
        for index, share in enumerate(shares(manifest.config, num_nodes, kv_tokens)):
            name = f"node-{chr(ord('a') + index)}"
            nodes.append(
                await start(
                    name, node_command(grpc, token, name, scratch / name, manifest, share, kv_tokens, engine)
                )
            )
            # One after the other, so that the names follow the layers; fetching and loading overlap.
            await nodes[-1].event("reserved", within_seconds=START_SECONDS)
        for node in nodes:
            await node.event("ready", within_seconds=FETCH_SECONDS)

        async def start_spare(name: str, layers: LayerRange, memory_bytes: int) -> Child:
            """With half the KV cache: routes prefer the others as long as they live."""
            share = Share(memory_bytes, layers)
            return await start(  # type: ignore[no-any-return]
                name,
                node_command(
                    grpc, token, name, scratch / name, manifest, share, max(kv_tokens // 2, 16), engine
                ),
            )

        yield LocalMesh(
            f"http://{listening['http']}", grpc, token, coordinator, seeder, tuple(nodes), start_spare
        )


def coordinator_command(release: Path, trust: Path, data: Path) -> list[str]:
    return [
        command("mesh-coordinator"), "up", "--release", str(release), "--trust", str(trust), "--json",
        "--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--data", str(data),
    ]  # fmt: skip


def seeder_command(release: Path, trust: Path, grpc: str, token: str) -> list[str]:
    return [
        command("mesh"), "seed", str(release), "--trust", str(trust), "--json",
        "--coordinator", grpc, "--token", token,
    ]  # fmt: skip


def node_command(
    grpc: str,
    token: str,
    name: str,
    data: Path,
    manifest: Manifest,
    share: Share,
    kv_tokens: int,
    engine: str = "torch",
) -> list[str]:
    return [
        command("mesh-node"), "join", grpc, "--token", token, "--yes", "--json", "--name", name,
        "--data", str(data), "--memory", str(share.memory_bytes), "--kv-tokens", str(kv_tokens), "--device", "cpu",
        # Said here and not left to the environment: the reference in this process must use the same.
        "--engine", engine,
        # Several nodes share this machine's cores: more threads than that only wait for each other.
        "--threads", "1", "--accept-license", manifest.license.id,
        *(["--layers", str(share.layers)] if share.layers is not None else []),
    ]  # fmt: skip
