"""A release with encoded twins, from ``mesh pack --encode zstd`` to a node that serves it, with real processes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from mesh.demo.local_mesh import coordinator_command, node_command, seeder_command
from mesh.demo.processes import children, command
from mesh.demo.splitting import Share
from mesh.weights.releases.release import Release
from mesh.weights.trust.signing import PrivateKey, TrustRoot
from tests.support.tiny_models import write_tiny_checkpoint

WITHIN = 60.0


def pack_encoded(directory: Path) -> tuple[Release, Path]:
    key = PrivateKey.generate()
    key.save(directory / "me.key")
    trust = directory / "me.pub"
    trust.write_bytes(TrustRoot.of(key.public).to_bytes())
    source = write_tiny_checkpoint(directory / "checkpoint")
    packed = subprocess.run(
        [
            *(command("mesh"), "pack", str(source), "--out", str(directory / "release"), "--name", "tiny"),
            *("--license", "apache-2.0", "--key", str(directory / "me.key"), "--encode", "zstd", "--json"),
        ],
        check=True,
        capture_output=True,
    )
    release = Release.open(directory / "release", TrustRoot.of(key.public))
    (encoding,) = release.manifest.encodings
    (said,) = json.loads(packed.stdout)["encoded"]
    assert said == {
        "codec": "byteplane-zstd/1",
        "shards": len(encoding.shards),
        "bytes": sum(path.stat().st_size for path in release.twin_paths().values()),
    }
    return release, trust


async def test_node_on_a_slow_link_takes_twins_and_serves_the_shards(tmp_path: Path) -> None:
    release, trust = pack_encoded(tmp_path)
    manifest = release.manifest
    (tmp_path / "logs").mkdir()
    async with children(tmp_path / "logs", lambda name, event: None) as start:
        coordinator = await start(
            "coordinator", coordinator_command(release.directory, trust, tmp_path / "coordinator")
        )
        listening = await coordinator.event("listening", within_seconds=WITHIN)
        grpc, token = listening["grpc"], listening["token"]
        await start("seeder", seeder_command(release.directory, trust, grpc, token))
        share = Share(memory_bytes=2 << 30, layers=None)
        node = await start(
            "node",
            [
                *node_command(grpc, token, "node", tmp_path / "node", manifest, share, 256),
                *("--encoding", "zstd"),
            ],
        )
        await node.event("ready", within_seconds=WITHIN)

    shards = {ref.file: ref for ref in manifest.shards}
    fetched = {path.name for path in (tmp_path / "node").glob("**/tiny.bpz/*")}
    wanted = {twin for twin in release.twin_paths() if shards[twin.of].role != "aux"}
    assert fetched == {twin.file for twin in wanted}
    for twin in wanted:
        blob = tmp_path / "node" / "shards" / "blobs" / shards[twin.of].root
        assert blob.read_bytes() == release.shard_path(shards[twin.of]).read_bytes()
