"""``mesh verify DIR``: every byte of a release against what its publisher signed, offline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mesh.errors import MeshError
    from mesh.weights.manifest import ShardRef

SCHEMA = "mesh.verify/1"


def verify(
    directory: Annotated[Path, typer.Argument(help="The release.")],
    trust: Annotated[
        Path | None,
        typer.Option(envvar="MESH_TRUST", help="The publisher's public key. Default: every key of yours."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check signature, torrent and every shard of a release. Exit code 4 names what was changed."""
    import json

    from mesh.cli.progress import byte_progress
    from mesh.sizes import format_size
    from mesh.swarm.metainfo import check_torrent
    from mesh.weights.keyring import trusted_keys
    from mesh.weights.release import Release, verify_shards
    from mesh.weights.signing import signer_of

    known = trusted_keys(trust)
    # (1) The manifest is signed by somebody we trust.  (2) The torrent is the manifest's.  (3) Every shard is.
    release = Release.open(directory, known)
    manifest, signer = release.manifest, signer_of(release.envelope, known).key_id
    check_torrent(release.torrent, manifest)
    with byte_progress("verifying") as progress:
        problems = verify_shards(release, progress)
    unlisted = release.unlisted_files()

    if as_json:
        shards = [
            {
                "file": ref.file,
                "ok": ref not in problems,
                "problem": str(problems[ref]) if ref in problems else None,
            }
            for ref in manifest.shards
        ]
        value = {
            "schema": SCHEMA,
            "ok": not problems,
            "release_id": manifest.release_id,
            "name": manifest.name,
            "signer": signer,
            "bytes": manifest.total_bytes,
            "shards": shards,
            "unlisted_files": list(unlisted),
        }
        typer.echo(json.dumps(value))
    else:
        for problem in problems.values():
            typer.echo(f"BAD  {problem}")
        for file in unlisted:
            typer.echo(f"not part of the release: {file}", err=True)
    if problems:
        raise verdict(problems, len(manifest.shards))
    if not as_json:
        typer.echo(
            f"verified {manifest.name}: {len(manifest.shards)} shards, {format_size(manifest.total_bytes)},"
            f" signed by {signer}"
        )


def verdict(problems: Mapping[ShardRef, MeshError], num_shards: int) -> MeshError:
    """One error that names every bad shard: corrupt beats missing, since a lie is worse than a gap."""
    from mesh.errors import IntegrityError, NotFound

    names = ", ".join(ref.file for ref in problems)
    text = f"{len(problems)} of {num_shards} shards are bad: {names}; fetch them again"
    if all(isinstance(problem, NotFound) for problem in problems.values()):
        return NotFound(text.replace("are bad", "are missing"))
    return IntegrityError(text)
