"""Publish a new version of a model while the old one answers, with real processes: nobody is refused, nobody restarts."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
from pathlib import Path

import openai

from mesh.demo.local_mesh import coordinator_command, node_command, seeder_command
from mesh.demo.processes import children, command
from mesh.demo.splitting import Share
from mesh.publishing import pack_release
from tests.support.releases import PackedRelease, pack_tiny
from tests.support.tiny_models import write_tiny_checkpoint

WITHIN = 60.0
KV_TOKENS = 256
ROOMY = Share(memory_bytes=2 << 30, layers=None)


def next_version(first: PackedRelease, directory: Path) -> PackedRelease:
    """Other weights under the same name, by the same publisher."""
    source = write_tiny_checkpoint(directory / "checkpoint", seed=7)
    manifest = pack_release(source, directory / "release", "Apache-2.0", None, first.key, name="tiny")
    return dataclasses.replace(first, directory=directory / "release", manifest=manifest)


async def test_a_new_version_takes_over_while_the_old_one_answers(tmp_path: Path) -> None:
    old = pack_tiny(tmp_path / "old")
    new = next_version(old, tmp_path / "new")
    data = tmp_path / "coordinator"
    (tmp_path / "logs").mkdir()
    async with children(tmp_path / "logs", lambda name, event: None) as start:
        coordinator = await start("coordinator", coordinator_command(old.directory, old.trust_file, data))
        listening = await coordinator.event("listening", within_seconds=WITHIN)
        grpc, token = listening["grpc"], listening["token"]
        await start("seeder", seeder_command(old.directory, old.trust_file, grpc, token))
        nodes = [
            await start(
                name, node_command(grpc, token, name, tmp_path / name, old.manifest, ROOMY, KV_TOKENS)
            )
            for name in ("node-a", "node-b")
        ]
        for node in nodes:
            await node.event("ready", within_seconds=WITHIN)

        async with openai.AsyncOpenAI(
            base_url=f"http://{listening['http']}/v1", api_key="any", max_retries=0
        ) as client:

            async def ask() -> str:
                answer = await client.chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=8, temperature=0
                )
                return str(answer.system_fingerprint).partition("-")[0]

            assert await ask() == old.manifest.release_id[:16]
            await asyncio.to_thread(
                subprocess.run,
                [
                    *(command("mesh-coordinator"), "release", "add", str(new.directory)),
                    *("--trust", str(new.trust_file), "--data", str(data)),
                ],
                check=True,
                capture_output=True,
            )
            await start("new seeder", seeder_command(new.directory, new.trust_file, grpc, token))
            seen = set()
            async with asyncio.timeout(WITHIN):
                while (
                    new.manifest.release_id[:16] not in seen
                ):  # every answer on the way is one, none a refusal
                    seen.add(await ask())
            for node in nodes:
                await node.event("superseded", within_seconds=WITHIN)
            assert await ask() == new.manifest.release_id[:16]
        assert seen == {old.manifest.release_id[:16], new.manifest.release_id[:16]}
