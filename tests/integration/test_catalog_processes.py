"""The whole way with real processes: a token that pins a catalog's root, a node that serves, a release that is withdrawn."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from mesh.demo.local_mesh import node_command, seeder_command
from mesh.demo.processes import children, command
from mesh.demo.splitting import Share
from mesh.weights.trust.catalog.placing import remember_place
from mesh.weights.trust.catalog.plan import RoleKeys
from mesh.weights.trust.catalog.repository import Catalog
from tests.support.catalogs import Keys, plan_of
from tests.support.releases import pack_tiny

START = 60.0


async def test_withdrawn_release_is_served_no_longer_though_every_signature_still_fits(
    tmp_path: Path,
) -> None:
    packed = pack_tiny(tmp_path / "packed", num_layers=2, hidden_size=256, intermediate_size=512, head_dim=64)
    keys = Keys(acme=packed.key)
    catalog, _ = Catalog.create(tmp_path / "catalog", plan_of(keys), keys.all)
    catalog.add_publisher("acme", RoleKeys((packed.key.public,)), keys.all)
    catalog.add_release("acme", packed.open().envelope, keys.all)
    remember_place(tmp_path / "catalog", "acme", "tiny", packed.directory)
    keys.online.save(tmp_path / "online.key")
    (tmp_path / "logs").mkdir()
    async with children(tmp_path / "logs", lambda name, event: None) as start:
        coordinator = await start("coordinator", [
            command("mesh-coordinator"), "up", "--release", "acme/tiny", "--json", "--lease", "1.5",
            "--catalog", str(tmp_path / "catalog"), "--online-key", str(tmp_path / "online.key"),
            "--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--data", str(tmp_path / "coordinator"),
        ])  # fmt: skip
        listening = await coordinator.event("listening", within_seconds=START)
        grpc, token = listening["grpc"], listening["token"]
        await start("seeder", seeder_command(packed.directory, packed.trust_file, grpc, token))
        node = await start(
            "node", node_command(grpc, token, "n", tmp_path / "n", packed.manifest, Share(2 << 30, None), 128)
        )
        await node.event("ready", within_seconds=START)
        async with httpx.AsyncClient(
            base_url=f"http://{listening['http']}", trust_env=False, timeout=30
        ) as http:
            assert (await _ask(http)).status_code == 200
            catalog.remove_release("acme", "tiny", [packed.key])  # no online key: the coordinator has it
            async with asyncio.timeout(20):
                while (answer := await _ask(http)).status_code == 200:
                    await asyncio.sleep(0.1)
        assert answer.status_code == 503
    assert (tmp_path / "coordinator").stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "n" / "catalog").glob("*/metadata/timestamp.json"))  # what it saw last


async def _ask(http: httpx.AsyncClient) -> httpx.Response:
    return await http.post("/v1/completions", json={"model": "tiny", "prompt": "hello", "max_tokens": 2})
