"""A small manifest that obeys every rule, for tests that need one but care for nothing in it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from mesh.architecture import LlamaConfig, RopeConfig
from mesh.weights.trust.manifest import (
    EMPTY_ROOT,
    EncodedShard,
    EncodingRef,
    HybridRef,
    LicenseRef,
    Manifest,
    Provenance,
    ShardRef,
    TorrentRef,
)

CONFIG = LlamaConfig(
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=300,
    context_length=512,
    rms_norm_eps=1e-5,
    rope=RopeConfig(theta=500000.0, kind="llama3", factor=8.0),
    tied=True,
    bos_token_id=256,
    eos_token_ids=(256, 258),
)


def example_manifest(name: str = "tiny-model", config: LlamaConfig = CONFIG) -> Manifest:
    layers = [("layer", layer) for layer in range(config.num_layers)]
    places = [("embed", None), *layers, ("head", None), ("aux", None)]
    shards = tuple(
        ShardRef(
            role=role,
            layer=layer,
            file=f"{role}.safetensors" if layer is None else f"{role}-{layer:05d}.safetensors",
            size=32768 + index,
            root=hashlib.sha256(f"root {index}".encode()).hexdigest(),
        )
        for index, (role, layer) in enumerate(places)
    )
    return Manifest(
        name=name,
        family="llama",
        model=config,
        quantization="Q4_1",
        shards=shards,
        torrent=TorrentRef(name, 4 * 1024 * 1024, True, hashlib.sha256(b"info").hexdigest()),
        license=LicenseRef("Apache-2.0", hashlib.sha256(b"license").hexdigest(), acceptance_required=False),
        provenance=Provenance("tiny.gguf", hashlib.sha256(b"source").hexdigest(), "llama-mesh 0.1.0"),
        created="2026-01-02T03:04:05Z",
    )


def example_files_manifest() -> Manifest:
    """A data set: a file in a directory, one at the top, one without bytes, and the licence beside them."""
    plain = example_manifest("tiny-data")
    shards = tuple(
        ShardRef("file", None, path, size, hashlib.sha256(path.encode()).hexdigest() if size else EMPTY_ROOT)
        for path, size in (("README.md", 5), ("data/_SUCCESS", 0), ("data/é 1.jsonl.zst", 70000))
    )
    aux = replace(plain.shard("aux"), file="release-aux.safetensors")
    return replace(
        plain, family="files", model=None, quantization=None, shards=(*shards, aux),
        provenance=replace(plain.provenance, source="tiny-data", method="llama-mesh.source/1"),
    )  # fmt: skip


def example_full_manifest() -> Manifest:
    """The same with every field that a manifest may leave out."""
    plain = example_manifest()
    twin = EncodedShard("embed.safetensors", "embed.bpz", 20000, hashlib.sha256(b"twin").hexdigest())
    encoded = TorrentRef("tiny-model.bpz", 4 * 1024 * 1024, True, hashlib.sha256(b"twins").hexdigest())
    hybrid = HybridRef(hashlib.sha1(b"info").hexdigest(), hashlib.sha256(b"pieces").hexdigest())
    return replace(
        plain,
        torrent=replace(plain.torrent, hybrid=hybrid),
        license=LicenseRef(
            "LicenseRef-example",
            plain.license.text_digest,
            acceptance_required=True,
            notice_digest=hashlib.sha256(b"notice").hexdigest(),
            policy_digest=hashlib.sha256(b"policy").hexdigest(),
        ),
        provenance=replace(plain.provenance, arguments=("--quantize", "q4_1")),
        expires="2027-01-02T03:04:05Z",
        encodings=(EncodingRef("byteplane-zstd/1", (twin,), encoded),),
    )
