"""``mesh verify DIR``: every byte of a release against what its publisher signed, offline; with ``--fleet`` what the nodes
of a mesh hold of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli.believing import CatalogOption, believed_keys

if TYPE_CHECKING:
    from mesh.verification import Verification

SCHEMA = "mesh.verify/2"


def verify(
    release: Annotated[
        str | None,
        typer.Argument(
            help="A release's directory. With --fleet: its name or id, where a mesh serves several.",
            show_default=False,
        ),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also look at tensors, numbers, tokenizer and template.")
    ] = False,
    trust: Annotated[
        Path | None,
        typer.Option(envvar="MESH_TRUST", help="The publisher's public key. Default: every key of yours."),
    ] = None,
    fleet: Annotated[
        bool, typer.Option("--fleet", help="Ask every node of a mesh to prove that it holds its shards now.")
    ] = False,
    coordinator: Annotated[
        str | None, typer.Option(envvar="MESH_COORDINATOR", help="With --fleet: its HOST:PORT.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="MESH_TOKEN", help="With --fleet: a join token of that coordinator.")
    ] = None,
    leaves: Annotated[
        int, typer.Option(min=1, max=32, help="With --fleet: 16 KiB blocks each node must show.")
    ] = 16,
    report: Annotated[
        Path | None, typer.Option(help="With --fleet: write the evidence here, as JSON.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="With --fleet: sign the report with this key of yours.")
    ] = None,
    catalog: CatalogOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check signature, licence, torrent and every shard of a release, on all cores. Exit code 4 names what was changed."""
    from mesh.errors import UsageError

    if fleet:
        if coordinator is None or token is None:
            raise UsageError(
                "--fleet needs --coordinator HOST:PORT and --token; the coordinator printed both"
            )
        from mesh.cli.verify_fleet import FleetQuestion, verify_fleet

        question = FleetQuestion(coordinator, token, release or "", trust, leaves, report, key)
        verify_fleet(question, as_json=as_json)
        return
    if release is None:
        raise UsageError("which release? pass its directory, or --fleet to ask the nodes of a mesh")
    _verify_directory(Path(release), deep=deep, trust=trust, catalog=catalog, as_json=as_json)


def _verify_directory(
    directory: Path, *, deep: bool, trust: Path | None, catalog: str | None, as_json: bool
) -> None:
    import json

    from mesh.cli.progress import byte_progress
    from mesh.verification import verify_release
    from mesh.weights.release import Release

    known = believed_keys(directory, trust, catalog)
    with byte_progress("verifying") as progress:
        verification = verify_release(Release.open(directory, known), known, deep=deep, progress=progress)
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
