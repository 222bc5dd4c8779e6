"""The formats, byte for byte. If one of these fails, every release in the field is about to change its address."""

from __future__ import annotations

import hashlib

import pytest

from mesh.weights.shards import tensor_file
from mesh.weights.trust.catalog.client import parse_root
from mesh.weights.trust.manifest import Manifest
from mesh.weights.trust.signing import TrustRoot, open_manifest
from tests.golden.make_golden import DIRECTORY, golden_files
from tests.mesh.weights.example_manifest import (
    example_files_manifest,
    example_full_manifest,
    example_manifest,
)


@pytest.mark.parametrize("name", sorted(golden_files()))
def test_what_is_written_today_is_what_was_always_written(name: str) -> None:
    assert golden_files()[name] == (DIRECTORY / name).read_bytes()


def test_what_was_always_written_is_read_today() -> None:
    manifest = example_manifest()
    trust = TrustRoot.load(DIRECTORY / "trust-v1.json")
    assert open_manifest((DIRECTORY / "manifest-v1.dsse.json").read_bytes(), trust) == manifest
    assert Manifest.parse((DIRECTORY / "manifest-v1.json").read_bytes()) == manifest
    assert Manifest.parse((DIRECTORY / "manifest-full-v1.json").read_bytes()) == example_full_manifest()
    assert Manifest.parse((DIRECTORY / "manifest-files-v1.json").read_bytes()) == example_files_manifest()
    header = (DIRECTORY / "shard-header-v1.bin").read_bytes()
    data_bytes = 64 * 256 // 256 * 210 + 96 * 64 * 2 + 64 * 64 // 32 * 20 + 32 * 64 // 32 * 20 + 64 * 4
    parsed = tensor_file.parse(header, len(header) + data_bytes)
    assert parsed.tensors["self_attn.q_proj.weight"].shape == (64, 64)


def test_release_id_is_frozen() -> None:
    assert example_manifest().release_id == "5edd842fe0850274b5e4510367b0e01c61a04cc84802aa0259456cec50bbe70c"


def test_root_that_was_always_written_can_still_be_pinned() -> None:
    """Every join token of a mesh with a catalog holds such a digest."""
    data = (DIRECTORY / "catalog-v1-1.root.json").read_bytes()
    assert parse_root(data).signed.roles["root"].threshold == 2
    assert (
        hashlib.sha256(data).hexdigest() == "cf9ebf19572b74115c8fc654182377732b2ba88aa47267a5ac6bade873b28129"
    )
