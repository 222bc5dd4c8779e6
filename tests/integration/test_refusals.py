"""What goes wrong on volunteers' machines: one clear line, the documented exit code, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.demo.local_mesh import coordinator_command, local_mesh, node_command, seeder_command
from mesh.demo.processes import Child, children
from mesh.demo.splitting import Share
from mesh.weights.trust.signing import PrivateKey, TrustRoot
from tests.support.releases import PackedRelease, pack_tiny

START = 60.0
MEMORY = 2 << 30


@dataclass(frozen=True)
class Result:
    code: int
    stderr: str


async def run(argv: list[str], *, file_size_limit: int | None = None) -> Result:
    """Run a command to its end; ``file_size_limit`` makes every longer write fail, as a full disk does."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))

    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=limit if file_size_limit is not None else None,
    )
    try:
        async with asyncio.timeout(START):
            _, err = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode is not None
    return Result(process.returncode, err.decode())


def refused(result: Result, code: int, *words: str) -> None:
    """Exit code, and exactly one line of error that holds the words."""
    assert result.code == code, result.stderr
    errors = [line for line in result.stderr.splitlines() if ": error: " in line]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in errors[0]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedRelease:
    return pack_tiny(tmp_path_factory.mktemp("packed"), hidden_size=256, intermediate_size=512, head_dim=64)


@dataclass(frozen=True)
class Door:
    """A coordinator that is up, and how to join it."""

    coordinator: Child
    grpc: str
    token: str

    def node(self, packed: PackedRelease, data: Path, memory: int = MEMORY, **changed: str) -> list[str]:
        return node_command(
            changed.get("grpc", self.grpc), changed.get("token", self.token), "n", data, packed.manifest,
            Share(memory, None), 128,
        )  # fmt: skip


@pytest.fixture
async def door(packed: PackedRelease, tmp_path: Path) -> AsyncIterator[Door]:
    (tmp_path / "logs").mkdir()
    async with children(tmp_path / "logs", lambda name, event: None) as start:
        command = coordinator_command(packed.directory, packed.trust_file, tmp_path / "coordinator")
        coordinator = await start("coordinator", command)
        listening = await coordinator.event("listening", within_seconds=START)
        yield Door(coordinator, listening["grpc"], listening["token"])


def shards_in(data: Path) -> list[str]:
    return sorted(path.name for path in (data / "shards" / "blobs").glob("*"))


async def test_coordinator_that_is_not_there_is_exit_6(
    packed: PackedRelease, tmp_path: Path, door: Door
) -> None:
    argv = [*door.node(packed, tmp_path / "n", grpc="127.0.0.1:1"), "--wait", "0.2"]
    refused(await run(argv), 6, "127.0.0.1:1", "mesh-coordinator up")


async def test_token_nobody_issued_is_exit_8(packed: PackedRelease, tmp_path: Path, door: Door) -> None:
    from mesh.token import JoinToken

    forged = JoinToken(b"x" * 16, JoinToken.parse(door.token).trust_digest).encode()
    refused(await run(door.node(packed, tmp_path / "n", token=forged)), 8, "token")
    refused(await run(door.node(packed, tmp_path / "n", token="nonsense")), 8, "token")


async def test_coordinator_that_serves_another_publisher_is_exit_4(
    packed: PackedRelease, tmp_path: Path, door: Door
) -> None:
    from mesh.token import JoinToken

    token = JoinToken.parse(door.token)
    other = JoinToken(token.secret, TrustRoot.of(PrivateKey.generate().public).digest()).encode()
    refused(await run(door.node(packed, tmp_path / "n", token=other)), 4, "trust root")
    assert shards_in(tmp_path / "n") == []


async def test_too_little_memory_for_one_layer_is_exit_7(
    packed: PackedRelease, tmp_path: Path, door: Door
) -> None:
    refused(await run(door.node(packed, tmp_path / "n", memory=1 << 20)), 7, "memory")


async def test_address_beyond_this_machine_is_exit_2_without_insecure(
    packed: PackedRelease, tmp_path: Path, door: Door
) -> None:
    refused(await run([*door.node(packed, tmp_path / "n"), "--listen", "192.0.2.1:0"]), 2, "--insecure")
    up = coordinator_command(packed.directory, packed.trust_file, tmp_path / "c")
    refused(await run([*up, "--listen", "192.0.2.1:0"]), 2, "--insecure")
    refused(await run([*up, "--grpc", "192.0.2.1:0"]), 2, "--insecure")
    # An open release is offered to anybody; a licensed one must not be, by an address alone.
    licensed = pack_tiny(tmp_path / "licensed", license_id="LicenseRef-terms", license_text=b"terms")
    seed = seeder_command(licensed.directory, licensed.trust_file, door.grpc, door.token)
    refused(await run([*seed, "--listen", "192.0.2.1:0"]), 2, "--insecure")


async def test_port_in_use_is_exit_1_naming_the_address(
    packed: PackedRelease, tmp_path: Path, door: Door
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        up = coordinator_command(packed.directory, packed.trust_file, tmp_path / "c")
        refused(await run([*up, "--listen", address]), 1, address)
        refused(await run([*up, "--grpc", address]), 1, address)
        node = door.node(packed, tmp_path / "n")
        refused(await run([*node, "--swarm-listen", address]), 1, address)
        async with running_seeder(packed, door, tmp_path):
            refused(await run([*node, "--listen", address]), 1, address)


@contextlib.asynccontextmanager
async def running_seeder(
    packed: PackedRelease, door: Door, tmp_path: Path, directory: Path | None = None
) -> AsyncIterator[Child]:
    logs = tmp_path / f"seed-logs-{id(packed)}"
    logs.mkdir(exist_ok=True)
    async with children(logs, lambda name, event: None) as start:
        yield await start(
            "seeder", seeder_command(directory or packed.directory, packed.trust_file, door.grpc, door.token)
        )


async def test_full_disk_is_exit_7_and_leaves_nothing_that_could_be_loaded(
    packed: PackedRelease, tmp_path: Path, door: Door
) -> None:
    """A file-size limit below a layer's size but above everything else a node writes."""
    largest = max(ref.size for ref in packed.manifest.shards)
    async with running_seeder(packed, door, tmp_path):
        result = await run(door.node(packed, tmp_path / "n"), file_size_limit=largest // 2)
        refused(result, 7)
        assert packed.manifest.shard("layer", 0).root not in shards_in(tmp_path / "n")
        # The same node, with room: it goes on where it stopped.
        logs = tmp_path / "again"
        logs.mkdir()
        async with children(logs, lambda name, event: None) as start:
            node = await start("n", door.node(packed, tmp_path / "n"))
            await node.event("ready", within_seconds=START)


async def test_release_with_a_flipped_byte_is_neither_seeded_nor_coordinated(
    packed: PackedRelease, tmp_path: Path, door: Door
) -> None:
    spoiled = tmp_path / "spoiled"
    shutil.copytree(packed.directory, spoiled)
    for name in ("layer-00002.safetensors", "aux.safetensors"):
        shard = spoiled / packed.manifest.torrent.name / name
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    seed = seeder_command(spoiled, packed.trust_file, door.grpc, door.token)
    result = await run(seed)
    refused(result, 4)
    assert "layer-00002.safetensors" in result.stderr or "aux.safetensors" in result.stderr
    up = coordinator_command(spoiled, packed.trust_file, tmp_path / "c")
    refused(await run(up), 4, "aux.safetensors")


async def test_release_of_an_unknown_key_is_not_coordinated(packed: PackedRelease, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pub"
    stranger.write_bytes(TrustRoot.of(PrivateKey.generate().public).to_bytes())
    refused(
        await run(coordinator_command(packed.directory, stranger, tmp_path / "c")),
        4,
        packed.key.public.key_id,
    )


async def test_second_node_in_one_data_directory_is_exit_2(
    packed: PackedRelease, tmp_path: Path, door: Door
) -> None:
    logs = tmp_path / "first"
    logs.mkdir()
    async with children(logs, lambda name, event: None) as start:
        first = await start("n", door.node(packed, tmp_path / "n"))
        await first.event("reserved", within_seconds=START)
        refused(await run(door.node(packed, tmp_path / "n")), 2, "--data")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_node_leaves_on_a_signal_while_it_fetches(
    packed: PackedRelease, tmp_path: Path, door: Door, number: signal.Signals
) -> None:
    """Nobody seeds: the node waits for peers. It goes at once and gives its layers back."""
    logs = tmp_path / "logs-node"
    logs.mkdir()
    async with children(logs, lambda name, event: None) as start:
        node = await start("n", door.node(packed, tmp_path / "n"))
        await node.event("fetching", within_seconds=START)
        node.send_signal(number)
        async with asyncio.timeout(10):
            assert await node.wait() == 128 + number
        again = await start("again", door.node(packed, tmp_path / "again"))
        await again.event("reserved", within_seconds=START)
        assert again.seen["plan"]["layers"] == node.seen["plan"]["layers"]


async def test_every_process_of_a_mesh_stops_on_a_signal_with_its_code(
    packed: PackedRelease, tmp_path: Path
) -> None:
    async with local_mesh(
        packed.directory, packed.trust_file, packed.manifest, tmp_path / "mesh", num_nodes=2, kv_tokens=64
    ) as mesh:
        for child in (*mesh.nodes, mesh.seeder, mesh.coordinator):
            async with asyncio.timeout(15):
                assert await child.stop() == 143, (child.name, child.last_words())


async def test_model_that_fits_one_node_takes_a_one_stage_route(
    packed: PackedRelease, tmp_path: Path
) -> None:
    async with local_mesh(
        packed.directory, packed.trust_file, packed.manifest, tmp_path / "mesh", num_nodes=1, kv_tokens=64
    ) as mesh:
        assert mesh.nodes[0].seen["plan"]["layers"] == "0:4"
