"""``mesh pack SOURCE --out DIR``: a checkpoint, or any directory of files, becomes a signed release."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.swarm_options import WebSeedOption

if TYPE_CHECKING:
    from mesh.weights.trust.manifest import Manifest

SCHEMA = "mesh.pack/1"


class Encoding(StrEnum):
    zstd = "zstd"


class Kind(StrEnum):
    model = "model"
    files = "files"


class Quantization(StrEnum):
    q8_0 = "q8_0"
    q4_0 = "q4_0"
    q4_1 = "q4_1"


def pack(
    source: Annotated[
        Path,
        typer.Argument(
            help="A GGUF file, or a directory of Hugging Face's or Meta's files; with --as files any directory."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The directory to make; it must not exist or be empty.")],
    license_id: Annotated[str, typer.Option("--license", help="SPDX id, or LicenseRef-… for others.")],
    key: Annotated[
        str, typer.Option(envvar="MESH_KEY", help="Signing key: a file, or a name from `mesh keys list`.")
    ],
    license_file: Annotated[
        Path | None, typer.Option(help="The license's text, unless it is bundled or lies beside the weights.")
    ] = None,
    notice_file: Annotated[
        Path | None, typer.Option(help="The NOTICE to pass on, unless it lies beside the weights.")
    ] = None,
    policy_file: Annotated[
        Path | None, typer.Option(help="The use policy to pass on, unless it lies beside the weights.")
    ] = None,
    kind: Annotated[
        Kind,
        typer.Option(
            "--as", help="files: publish the directory as it is, a data set for example, not to be run."
        ),
    ] = Kind.model,
    copy: Annotated[
        bool,
        typer.Option("--copy", help="With --as files: copy every file. Default: link where the disk can."),
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="What the release is called. Default: SOURCE's name.")
    ] = None,
    created: Annotated[
        str | None, typer.Option(help="RFC 3339 time in UTC. Default: SOURCE_DATE_EPOCH, else now.")
    ] = None,
    quantize: Annotated[
        Quantization | None,
        typer.Option(help="Turn float weights into blocks of this type. Default: keep them."),
    ] = None,
    encode: Annotated[
        Encoding | None,
        typer.Option(help="Also write smaller twins of float shards, for nodes on slow links."),
    ] = None,
    private: Annotated[
        bool,
        typer.Option(
            "--private", help="Peers from a coordinator alone. Default: where the licence has to be accepted."
        ),
    ] = False,
    hybrid: Annotated[
        bool,
        typer.Option("--hybrid", help="Also for BitTorrent v1 clients; takes one more pass over the files."),
    ] = False,
    web_seed: WebSeedOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Turn a checkpoint into a signed release of content-addressed shards.

    If it is interrupted, the same command goes on after the last whole shard.
    """
    import json
    import time

    from mesh.cli.progress import byte_progress
    from mesh.errors import UsageError
    from mesh.publishing import pack_release
    from mesh.sizes import format_size
    from mesh.swarm.addresses import web_seed_url
    from mesh.swarm.companion import magnet_of_release
    from mesh.weights.releases.release import Release
    from mesh.weights.trust.keyring import find_key
    from mesh.weights.trust.signing import TrustRoot

    if kind is Kind.files and (quantize is not None or encode is not None):
        raise UsageError("--as files publishes files unchanged; --quantize and --encode are for models")
    if copy and kind is not Kind.files:
        raise UsageError("--copy goes with --as files; the shards of a model are always written anew")
    signer = find_key(key)
    began = time.monotonic()
    with byte_progress("packing") as progress:
        manifest = pack_release(
            source,
            out,
            license_id=license_id,
            license_text=_text(license_file, "license"),
            notice=_text(notice_file, "notice"),
            policy=_text(policy_file, "policy"),
            kind=kind.value,
            copy=copy,
            private=private,
            hybrid=hybrid,
            web_seeds=tuple(web_seed_url(url) for url in web_seed or ()),
            say=lambda line: typer.echo(line, err=True),
            key=signer,
            name=name,
            created=created,
            quantize=quantize,
            encode=encode is not None,
            progress=progress,
        )
    seconds = time.monotonic() - began
    key_id = signer.public.key_id
    magnet = magnet_of_release(Release.open(out, TrustRoot.of(signer.public)))
    if as_json:
        value = {
            "schema": SCHEMA,
            "release_id": manifest.release_id,
            "name": manifest.name,
            "directory": str(out),
            "infohash": manifest.torrent.infohash,
            "magnet": None if magnet is None else str(magnet),
            "bytes": manifest.total_bytes,
            "shards": len(manifest.shards),
            "encoded": [
                {"codec": e.codec, "shards": len(e.shards), "bytes": sum(twin.size for twin in e.shards)}
                for e in manifest.encodings
            ],
            "signer": key_id,
            "seconds": round(seconds, 3),
        }
        typer.echo(json.dumps(value))
        return
    what = "shards" if manifest.is_model else "files"
    typer.echo(
        f"packed {manifest.name}: {len(manifest.shards)} {what}, {format_size(manifest.total_bytes)}, in {seconds:.1f} s\n"
        f"  release  {manifest.release_id}\n"
        f"  signed   {key_id}\n"
        f"  in       {out}" + ("" if magnet is None else f"\n  magnet   {magnet}")
    )
    if encode is not None:
        typer.echo(_describe_twins(manifest))


def _text(path: Path | None, what: str) -> bytes | None:
    from mesh.errors import NotFound

    if path is None:
        return None
    if not path.is_file():
        raise NotFound(f"{what} file {path} does not exist")
    return path.read_bytes()


def _describe_twins(manifest: Manifest) -> str:
    if not manifest.encodings:
        return "  encoded  no shard, since none would save 3 %"
    (encoding,) = manifest.encodings
    whole = {ref.file: ref.size for ref in manifest.shards}
    size, raw = sum(twin.size for twin in encoding.shards), sum(whole[twin.of] for twin in encoding.shards)
    return f"  encoded  {len(encoding.shards)} shards, at {100 * size / raw:.1f} % of their size"
