"""How a manifest is spelled: canonical JSON (sorted keys, no spaces), the same bytes on every machine.

A field that says nothing is absent, never null, so that a release packed before the field existed keeps its bytes and
its id. ``read`` is called only on bytes whose signature was verified; it still trusts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mesh import strict_json
from mesh.architecture import LlamaConfig
from mesh.errors import CheckpointUnsupported, ManifestInvalid
from mesh.weights.trust.json_fields import Fields
from mesh.weights.trust.manifest import (
    MAX_MANIFEST_BYTES,
    EncodedShard,
    EncodingRef,
    HybridRef,
    LicenseRef,
    Manifest,
    Provenance,
    ShardRef,
    TorrentRef,
)

SCHEMA = "llama-mesh.manifest/1"


def write(manifest: Manifest) -> bytes:
    license_, provenance = manifest.license, manifest.provenance
    return strict_json.dumps(
        {
            "schema": SCHEMA,
            "name": manifest.name,
            "family": manifest.family,
            "shards": [
                {"role": s.role, "layer": s.layer, "file": s.file, "size": s.size, "root": s.root}
                for s in manifest.shards
            ],
            "torrent": _torrent_json(manifest.torrent),
            "license": {
                "id": license_.id,
                "text_digest": license_.text_digest,
                "acceptance_required": license_.acceptance_required,
                **_present(notice_digest=license_.notice_digest, policy_digest=license_.policy_digest),
            },
            "provenance": {
                "source": provenance.source,
                "source_digest": provenance.source_digest,
                "tool": provenance.tool,
                **_present(arguments=list(provenance.arguments) or None, method=provenance.method),
            },
            "created": manifest.created,
            **_present(
                config=manifest.model and manifest.model.to_json(),
                quantization=manifest.quantization,
                expires=manifest.expires,
                encodings=[_encoding_json(encoding) for encoding in manifest.encodings] or None,
            ),
        }
    )


def read(data: bytes) -> Manifest:
    try:
        value = strict_json.loads(data, max_bytes=MAX_MANIFEST_BYTES)
    except ValueError as exc:
        raise ManifestInvalid(f"manifest is not the JSON we sign: {exc}") from exc
    top = Fields("manifest", value)
    if (schema := top.text("schema")) != SCHEMA:
        raise ManifestInvalid(f"manifest schema {schema!r}: this version reads {SCHEMA!r}")
    try:
        manifest = Manifest(
            name=top.text("name"),
            family=top.text("family"),
            model=LlamaConfig.from_json(top.take("config")) if "config" in top else None,
            quantization=top.optional_text("quantization"),
            shards=tuple(_shards(top)),
            torrent=_torrent(top.object("torrent")),
            license=_license(top.object("license")),
            provenance=_provenance(top.object("provenance")),
            created=top.text("created"),
            expires=top.optional_text("expires"),
            encodings=tuple(_encodings(top)),
        )
    except CheckpointUnsupported as exc:
        raise ManifestInvalid(f"manifest: {exc}") from exc
    top.done()
    if manifest.to_bytes() != data:
        raise ManifestInvalid("manifest is not in canonical form; its release id would be ambiguous")
    return manifest


def _present(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _torrent_json(torrent: TorrentRef) -> dict[str, Any]:
    hybrid = torrent.hybrid and {
        "infohash_v1": torrent.hybrid.infohash_v1,
        "pieces_digest": torrent.hybrid.pieces_digest,
    }
    return {
        "name": torrent.name,
        "piece_length": torrent.piece_length,
        "private": torrent.private,
        "infohash": torrent.infohash,
        **_present(hybrid=hybrid),
    }


def _encoding_json(encoding: EncodingRef) -> dict[str, Any]:
    return {
        "codec": encoding.codec,
        "shards": [
            {"of": twin.of, "file": twin.file, "size": twin.size, "root": twin.root}
            for twin in encoding.shards
        ],
        "torrent": _torrent_json(encoding.torrent),
    }


def _shards(top: Fields) -> Iterator[ShardRef]:
    for shard in top.objects("shards"):
        layer = shard.take("layer")
        if layer is not None and type(layer) is not int:
            raise ManifestInvalid(f"manifest shard layer {str(layer)[:40]!r}: expected an integer or null")
        yield ShardRef(
            shard.text("role"), layer, shard.text("file"), shard.integer("size"), shard.text("root")
        )
        shard.done()


def _torrent(fields: Fields) -> TorrentRef:
    hybrid = None
    if "hybrid" in fields:
        v1 = fields.object("hybrid")
        hybrid = HybridRef(v1.text("infohash_v1"), v1.text("pieces_digest"))
        v1.done()
    torrent = TorrentRef(
        fields.text("name"),
        fields.integer("piece_length"),
        fields.boolean("private"),
        fields.text("infohash"),
        hybrid,
    )
    fields.done()
    return torrent


def _license(fields: Fields) -> LicenseRef:
    license_ = LicenseRef(
        fields.text("id"),
        fields.text("text_digest"),
        fields.boolean("acceptance_required"),
        fields.optional_text("notice_digest"),
        fields.optional_text("policy_digest"),
    )
    fields.done()
    return license_


def _provenance(fields: Fields) -> Provenance:
    provenance = Provenance(
        fields.text("source"),
        fields.text("source_digest"),
        fields.text("tool"),
        fields.texts("arguments") if "arguments" in fields else (),
        fields.optional_text("method"),
    )
    fields.done()
    return provenance


def _encodings(top: Fields) -> Iterator[EncodingRef]:
    if "encodings" not in top:
        return
    for encoding in top.objects("encodings"):
        twins = []
        for twin in encoding.objects("shards"):
            twins.append(
                EncodedShard(twin.text("of"), twin.text("file"), twin.integer("size"), twin.text("root"))
            )
            twin.done()
        yield EncodingRef(encoding.text("codec"), tuple(twins), _torrent(encoding.object("torrent")))
        encoding.done()
