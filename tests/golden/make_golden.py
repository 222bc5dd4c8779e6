"""Writes the golden files: ``python -m tests.golden.make_golden``. Run it only when a format is meant to change.

A changed file here is a changed format: every release that was ever packed gets another address, and every node in the
field refuses the new one. Such a change wants a new number in ``format`` or ``schema`` and a reader for both.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from mesh.weights.shards import tensor_file
from mesh.weights.trust.acceptance import LicenseAcceptance, sign_acceptance
from mesh.weights.trust.catalog.plan import CatalogPlan, RoleKeys
from mesh.weights.trust.catalog.repository import Catalog
from mesh.weights.trust.revocation import Action, Kind, Reason, Revocation, RevocationList, timestamp
from mesh.weights.trust.signing import PrivateKey, TrustRoot, sign_manifest
from tests.mesh.weights.example_manifest import (
    example_files_manifest,
    example_full_manifest,
    example_manifest,
)
from tests.support.clock import ManualClock

DIRECTORY = Path(__file__).parent


def example_revocations() -> RevocationList:
    """One entry of each kind."""
    now, digest = 1_767_323_045.0, hashlib.sha256(b"id").hexdigest()
    ids = {Kind.KEY: f"ed25519:{digest[:32]}", Kind.LICENSE: "LicenseRef-example"}
    return RevocationList.first(now).adding(
        [
            Revocation(kind, ids.get(kind, digest), Reason.DMCA, timestamp(now), Action.DELETE, "case 7")
            for kind in Kind
        ],
        now,
    )


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
        **golden_catalog(),
        "shard-header-v1.bin": header,
        "manifest-v1.json": manifest.to_bytes(),
        "manifest-full-v1.json": example_full_manifest().to_bytes(),
        "manifest-files-v1.json": example_files_manifest().to_bytes(),
        "manifest-v1.dsse.json": sign_manifest(manifest, key),
        "license-acceptance-v1.dsse.json": sign_acceptance(
            LicenseAcceptance.of(example_full_manifest(), key.public, 1_767_323_045.0), key
        ),
        "revocations-v1.json": example_revocations().to_bytes(),
        "trust-v1.json": TrustRoot.of(key.public).to_bytes(),
    }


def golden_catalog() -> dict[str, bytes]:
    """What nodes pin and follow: another root is another token, and another spelling of a role another signature."""
    names = ("root-a", "root-b", "targets", "online", "acme")
    seeds = {name: PrivateKey.from_seed(hashlib.sha256(name.encode()).digest()) for name in names}
    public = {name: key.public for name, key in seeds.items()}
    plan = CatalogPlan(
        root=RoleKeys((public["root-a"], public["root-b"]), threshold=2),
        targets=RoleKeys((public["targets"],)),
        takedown=RoleKeys((public["targets"],)),
        online=RoleKeys((public["online"],)),
        catalog_id="0123456789abcdef" * 2,
    )
    signers = list(seeds.values())
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "catalog"
        catalog, _ = Catalog.create(directory, plan, signers, ManualClock(wall=1_750_000_000.0))
        catalog.add_publisher("acme", RoleKeys((public["acme"],)), signers)
        catalog.add_release("acme", sign_manifest(example_manifest(), seeds["acme"]), signers)
        files = ("1.root", "2.targets", "1.publisher-acme", "3.snapshot", "timestamp")
        return {
            f"catalog-v1-{name}.json": (directory / "metadata" / f"{name}.json").read_bytes()
            for name in files
        }


if __name__ == "__main__":
    for name, data in golden_files().items():
        (DIRECTORY / name).write_bytes(data)
