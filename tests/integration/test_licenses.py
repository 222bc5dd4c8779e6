"""A licensed release with real processes: nothing is fetched before somebody has accepted, and the word is kept."""

from __future__ import annotations

import json
from pathlib import Path

from mesh.demo.local_mesh import coordinator_command, node_command, seeder_command
from mesh.demo.processes import children, command
from mesh.demo.splitting import Share
from mesh.weights.trust.acceptance import open_acceptance
from tests.integration.test_refusals import START, refused, run
from tests.support.releases import pack_tiny

TEXT = b"Use it kindly.\n"


async def test_without_acceptance_a_node_fetches_nothing_and_with_it_the_record_is_kept(
    tmp_path: Path,
) -> None:
    packed = pack_tiny(tmp_path / "packed", license_id="LicenseRef-kind", license_text=TEXT, num_layers=2)
    data, logs = tmp_path / "node", tmp_path / "logs"
    logs.mkdir()
    async with children(logs, lambda name, event: None) as start:
        coordinator = await start(
            "coordinator",
            coordinator_command(packed.directory, packed.trust_file, tmp_path / "coordinator"),
        )
        listening = await coordinator.event("listening", within_seconds=START)
        grpc, token = listening["grpc"], listening["token"]
        await start("seeder", seeder_command(packed.directory, packed.trust_file, grpc, token))
        join = node_command(grpc, token, "n", data, packed.manifest, Share(2 << 30, None), 64)
        at = join.index("--accept-license")
        without = [*join[:at], *join[at + 2 :]]

        result = await run(without)  # --yes is among its words
        refused(result, 5, "--accept-license LicenseRef-kind")
        assert not list((data / "shards" / "blobs").iterdir())
        assert not (data / "licenses").exists()

        # The terms can be read, and accepted beforehand; then joining asks no more.
        at_coordinator = ["--coordinator", grpc, "--token", token]
        refused(await run([command("mesh"), "license", "accept", *at_coordinator, "--data", str(data)]), 5)
        assert not (data / "licenses").exists()
        accept = [command("mesh"), "license", "accept", *at_coordinator, "--data", str(data)]
        result = await run([*accept, "--accept-license", "LicenseRef-kind"])
        assert (result.code, "Use it kindly." in result.stderr) == (0, True), result.stderr

        node = await start("n", without)
        await node.event("ready", within_seconds=START)

    export = tmp_path / "export.json"
    listing = [command("mesh-coordinator"), "licenses", "--json", "--data", str(tmp_path / "coordinator")]
    result = await run(["sh", "-c", '"$@" > "$0"', str(export), *listing])
    assert result.code == 0, result.stderr
    (row,) = json.loads(export.read_text())["acceptances"]
    record = open_acceptance(json.dumps(row["record"]).encode())
    record.check_for(packed.manifest, row["node_id"])
    assert row["node_id"] == node.seen["plan"]["node_id"]
