"""What ``mesh verify`` says of a release: a line per step, a row per shard, the sum; or one JSON object."""

from __future__ import annotations

from typing import Any

import typer

from mesh.sizes import format_size
from mesh.verification import Verification
from mesh.weights.shards.shard_check import CheckedShard

SCHEMA = "mesh.verify/2"


def tell(verification: Verification) -> None:
    """One line per step, one row per shard, and the sum of it."""
    manifest = verification.manifest
    for step in verification.steps:
        typer.echo(f"{step.outcome:<11}  {step.name:<10}  {step.detail}")
    typer.echo("")
    widest = max(len(ref.file) for ref in manifest.shards)
    for shard in verification.shards:
        place = shard.ref.role if shard.ref.layer is None else f"layer {shard.ref.layer}"
        typer.echo(
            f"{_state(shard):<8}  {shard.ref.file:<{widest}}  {place:<10}  {format_size(shard.ref.size):>10}  {shard.ref.root[:16]}"
        )
    for shard in verification.shards:
        if shard.problem is not None and shard.is_held:  # of the others the row says it all
            typer.echo(f"BAD  {shard.problem}")
    for file in verification.unlisted_files:
        typer.echo(f"not part of the release: {file}")
    if verification.ok:
        held, total = verification.held, len(manifest.shards)
        what = f"{total} shards" if len(held) == total else f"the {len(held)} of {total} shards that are held"
        typer.echo(
            f"verified {manifest.name}: {what}, {format_size(sum(ref.size for ref in held))},"
            f" signed by {verification.signer}"
        )


def _state(shard: CheckedShard) -> str:
    if not shard.is_held:
        return "not held"
    return "BAD" if shard.problem else "ok"


def to_json(verification: Verification) -> dict[str, Any]:
    manifest = verification.manifest
    return {
        "schema": SCHEMA,
        "ok": verification.ok,
        "release_id": manifest.release_id,
        "name": manifest.name,
        "signer": verification.signer,
        "bytes": manifest.total_bytes,
        "held_bytes": sum(ref.size for ref in verification.held),
        "steps": [
            {"name": step.name, "outcome": str(step.outcome), "detail": step.detail}
            for step in verification.steps
        ],
        "shards": [
            {
                "file": shard.ref.file,
                "role": shard.ref.role,
                "layer": shard.ref.layer,
                "size": shard.ref.size,
                "root": shard.ref.root,
                "held": shard.is_held,
                "ok": shard.problem is None if shard.is_held else None,
                "problem": str(shard.problem) if shard.problem else None,
            }
            for shard in verification.shards
        ],
        "unlisted_files": list(verification.unlisted_files),
    }
