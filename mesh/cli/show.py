"""``mesh show DIR``: what a release is, once its signature is known to be good."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.believing import CatalogOption, believed_keys

if TYPE_CHECKING:
    from mesh.weights.trust.manifest import Manifest
    from mesh.weights.trust.signing import TrustRoot

SCHEMA = "mesh.show/1"


def show(
    path: Annotated[Path, typer.Argument(help="A release, or its manifest.dsse.json.")],
    trust: Annotated[
        Path | None,
        typer.Option(envvar="MESH_TRUST", help="The publisher's public key. Default: every key of yours."),
    ] = None,
    catalog: CatalogOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Say what a release is and who signed it. Reads no weights."""
    import json

    from mesh.weights.releases.release import MANIFEST_FILE, read_envelope
    from mesh.weights.trust.signing import open_manifest, signer_of

    known = believed_keys(path, trust, catalog)
    envelope = read_envelope(path / MANIFEST_FILE if path.is_dir() else path)
    manifest = open_manifest(envelope, known)
    signer = signer_of(envelope, known).key_id
    magnet = _magnet(path, known)
    if as_json:
        value = {
            "schema": SCHEMA,
            "release_id": manifest.release_id,
            "signer": signer,
            "bytes": manifest.total_bytes,
            "magnet": magnet,
            "manifest": json.loads(manifest.to_bytes()),
        }
        typer.echo(json.dumps(value))
    else:
        typer.echo(describe(manifest, signer, magnet))


def _magnet(path: Path, trust: TrustRoot) -> str | None:
    """The link to an open release; None for a private one, and where its .torrent is not there."""
    from mesh.weights.releases.release import TORRENT_FILE, Release

    if not path.is_dir() or not (path / TORRENT_FILE).is_file():
        return None
    release = Release.open(path, trust)
    if release.manifest.torrent.private:
        return None
    from mesh.swarm.companion import magnet_of_release

    return str(magnet_of_release(release))


def describe(manifest: Manifest, signer: str, magnet: str | None = None) -> str:
    """The release in words and a table."""
    from mesh.sizes import format_size

    provenance = manifest.provenance
    facts = {
        "release": manifest.release_id,
        "signed by": signer,
        **(_describe_model(manifest) if manifest.is_model else _describe_files(manifest)),
        "license": manifest.license.id + (", to be accepted" if manifest.license.acceptance_required else ""),
        "source": f"{provenance.source}, {provenance.method or 'sha256'} {provenance.source_digest}",
        "packed": f"{manifest.created} by {' '.join((provenance.tool, *provenance.arguments))}",
        "infohash": f"{manifest.torrent.infohash}{', private' if manifest.torrent.private else ''}",
        **({"magnet": magnet} if magnet is not None else {}),
    }
    lines = [manifest.name, *(f"  {what:<10} {text}" for what, text in facts.items()), ""]
    widest = max(len(ref.file) for ref in manifest.shards)
    lines += [f"  {ref.file:<{widest}}  {format_size(ref.size):>10}  {ref.root}" for ref in manifest.shards]
    return "\n".join(lines)


def _describe_model(manifest: Manifest) -> dict[str, str]:
    from mesh.sizes import format_size

    config = manifest.config
    return {
        "model": f"{manifest.family}, {config.num_layers} layers, hidden {config.hidden_size}, "
        f"{config.num_heads} heads ({config.num_kv_heads} KV) of {config.head_dim}, "
        f"{'tied' if config.tied else 'untied'} head",
        "context": f"{config.context_length} tokens, RoPE {config.rope.kind}, theta {config.rope.theta:g}",
        "weights": f"{manifest.quantization}, {format_size(manifest.total_bytes)} in {len(manifest.shards)} shards",
    }


def _describe_files(manifest: Manifest) -> dict[str, str]:
    from mesh.sizes import format_size

    files = [ref for ref in manifest.shards if ref.role == "file"]
    return {"files": f"{len(files)}, {format_size(sum(ref.size for ref in files))} as they were"}
