"""A licensed release pulled from a real coordinator with a catalog: word first, then the private swarm, as a user meets it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mesh.demo.local_mesh import seeder_command
from mesh.demo.processes import children, command
from mesh.weights.releases.release import MANIFEST_FILE, TORRENT_FILE
from mesh.weights.trust.acceptance_book import AcceptanceBook
from mesh.weights.trust.catalog.placing import remember_place
from mesh.weights.trust.catalog.plan import RoleKeys
from mesh.weights.trust.catalog.repository import Catalog
from tests.integration.test_refusals import START, refused, run
from tests.support.catalogs import Keys, plan_of
from tests.support.releases import pack_tiny
from tests.support.seeders import files_below


async def test_licensed_release_is_pulled_from_a_coordinator_with_a_catalog_once_the_licence_is_accepted(
    tmp_path: Path,
) -> None:
    packed = pack_tiny(
        tmp_path / "packed", license_id="LicenseRef-kind", license_text=b"Use it kindly.\n", num_layers=2
    )
    keys, catalog_directory = Keys(acme=packed.key), tmp_path / "catalog"
    catalog, _ = Catalog.create(catalog_directory, plan_of(keys), keys.all)
    catalog.add_publisher("acme", RoleKeys((packed.key.public,)), keys.all)
    catalog.add_release("acme", packed.open().envelope, keys.all)
    remember_place(catalog_directory, "acme", "tiny", packed.directory)
    keys.online.save(tmp_path / "online.key")
    root = tmp_path / "root.json"
    root.write_bytes((catalog_directory / "metadata" / "1.root.json").read_bytes())
    out, data = tmp_path / "out", tmp_path / "data"
    mesh = ["env", f"XDG_DATA_HOME={tmp_path / 'home'}", command("mesh")]
    (tmp_path / "logs").mkdir()
    async with children(tmp_path / "logs", lambda name, event: None) as start:
        coordinator = await start("coordinator", [
            command("mesh-coordinator"), "up", "--release", "acme/tiny", "--json",
            "--catalog", str(catalog_directory), "--online-key", str(tmp_path / "online.key"),
            "--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--data", str(tmp_path / "coordinator"),
        ])  # fmt: skip
        listening = await coordinator.event("listening", within_seconds=START)
        grpc, token = listening["grpc"], listening["token"]
        await start("seeder", seeder_command(packed.directory, packed.trust_file, grpc, token))
        pull = [
            *(*mesh, "pull", grpc, "--token", token),
            *("--out", str(out), "--data", str(data), "--layers", "0:1"),
        ]

        result = await run(pull)
        refused(result, 5, "--accept-license LicenseRef-kind")
        assert "Use it kindly." in result.stderr
        assert not out.exists()
        assert not data.exists()

        result = await run([*pull, "--accept-license", "LicenseRef-kind"])
        assert result.code == 0, result.stderr
        wanted = {"LICENSE", "embed.safetensors", "layer-00000.safetensors"}
        assert files_below(out) == {MANIFEST_FILE, TORRENT_FILE, *wanted}
        (record,) = AcceptanceBook(data).records()
        record.check_for(packed.manifest, record.node_id)

        # By its name in the catalog, which the coordinator or a directory has; the word was given and is asked for no more.
        named = [*mesh, "pull", "acme/tiny", "--trust", str(root), "--data", str(data)]
        keys_only = ["--trust", str(packed.trust_file)]
        results = await asyncio.gather(
            run([*named, "--catalog", grpc, "--token", token, "--out", str(tmp_path / "named")]),
            run([*named, "--catalog", str(catalog_directory), "--dry-run", "--out", str(tmp_path / "dry")]),
            run([*mesh, "pull", "acme/tiny", "--catalog", grpc, "--token", token, *keys_only]),
        )
        assert [result.code for result in results] == [0, 0, 2], [result.stderr for result in results]
        assert files_below(tmp_path / "named") > files_below(out)
