"""``mesh verify DIR``: every byte of a release against what its publisher signed, offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mesh.verification import Verification

SCHEMA = "mesh.verify/2"


def verify(
    directory: Annotated[Path, typer.Argument(help="The release.")],
    deep: Annotated[
        bool, typer.Option("--deep", help="Also look at tensors, numbers, tokenizer and template.")
    ] = False,
    trust: Annotated[
        Path | None,
        typer.Option(envvar="MESH_TRUST", help="The publisher's public key. Default: every key of yours."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check signature, licence, torrent and every shard of a release, on all cores. Exit code 4 names what was changed."""
    import json

    from mesh.cli.progress import byte_progress
    from mesh.verification import verify_release
    from mesh.weights.keyring import trusted_keys
    from mesh.weights.release import Release

    known = trusted_keys(trust)
    release = Release.open(directory, known)
    with byte_progress("verifying") as progress:
        verification = verify_release(release, known, deep=deep, progress=progress)
    if as_json:
        typer.echo(json.dumps(_to_json(verification)))
    else:
        _tell(verification)
    if (verdict := verification.verdict()) is not None:
        raise verdict


def _tell(verification: Verification) -> None:
    """One line per step, one row per shard, and the sum of it."""
    from mesh.sizes import format_size

    manifest = verification.manifest
    for step in verification.steps:
        typer.echo(f"{step.outcome:<11}  {step.name:<10}  {step.detail}")
    typer.echo("")
    widest = max(len(ref.file) for ref in manifest.shards)
    for shard in verification.shards:
        state = "BAD" if shard.problem else "ok"
        place = shard.ref.role if shard.ref.layer is None else f"layer {shard.ref.layer}"
        typer.echo(
            f"{state:<3}  {shard.ref.file:<{widest}}  {place:<10}  {format_size(shard.ref.size):>10}  {shard.ref.root[:16]}"
        )
    for problem in verification.problems.values():
        typer.echo(f"BAD  {problem}")
    for file in verification.unlisted_files:
        typer.echo(f"not part of the release: {file}")
    if verification.ok:
        typer.echo(
            f"verified {manifest.name}: {len(manifest.shards)} shards, {format_size(manifest.total_bytes)},"
            f" signed by {verification.signer}"
        )


def _to_json(verification: Verification) -> dict[str, Any]:
    manifest = verification.manifest
    return {
        "schema": SCHEMA,
        "ok": verification.ok,
        "release_id": manifest.release_id,
        "name": manifest.name,
        "signer": verification.signer,
        "bytes": manifest.total_bytes,
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
                "ok": shard.problem is None,
                "problem": str(shard.problem) if shard.problem else None,
            }
            for shard in verification.shards
        ],
        "unlisted_files": list(verification.unlisted_files),
    }
