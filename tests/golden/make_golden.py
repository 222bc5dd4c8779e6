"""Writes the golden files: ``python -m tests.golden.make_golden``. Run it only when a format is meant to change.

A changed file here is a changed format: every release that was ever packed gets another address, and every node in the
field refuses the new one. Such a change wants a new number in ``format`` or ``schema`` and a reader for both.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from mesh.weights import tensor_file
from mesh.weights.signing import PrivateKey, TrustRoot, sign_manifest
from tests.mesh.weights.example_manifest import (
    example_files_manifest,
    example_full_manifest,
    example_manifest,
)

DIRECTORY = Path(__file__).parent


def golden_files() -> dict[str, bytes]:
    key = PrivateKey.from_seed(bytes(range(32)))  # Ed25519 signatures are deterministic (RFC 8032)
    manifest = example_manifest()
    _, header = tensor_file.lay_out(
        "layer",
        1,
        hashlib.sha256(b"license").hexdigest(),
        [
            ("input_layernorm.weight", "F32", (64,)),
            ("self_attn.q_proj.weight", "Q4_1", (64, 64)),
            ("self_attn.k_proj.weight", "Q4_1", (32, 64)),
            ("mlp.down_proj.weight", "Q6_K", (64, 256)),
            ("mlp.up_proj.weight", "BF16", (96, 64)),
        ],
    )
    return {
        "shard-header-v1.bin": header,
        "manifest-v1.json": manifest.to_bytes(),
        "manifest-full-v1.json": example_full_manifest().to_bytes(),
        "manifest-files-v1.json": example_files_manifest().to_bytes(),
        "manifest-v1.dsse.json": sign_manifest(manifest, key),
        "trust-v1.json": TrustRoot.of(key.public).to_bytes(),
    }


if __name__ == "__main__":
    for name, data in golden_files().items():
        (DIRECTORY / name).write_bytes(data)
