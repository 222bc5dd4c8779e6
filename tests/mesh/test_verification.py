"""``mesh verify``: each step says what it found, the worst finding decides, each byte is hashed once."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.errors import IntegrityError, LicenseRefused, NotFound
from mesh.verification import Outcome, Verification, verify_release
from mesh.weights.releases.release import Release
from mesh.weights.shards import merkle
from mesh.weights.shards.tensor_file import lay_out
from mesh.weights.shards.tensor_scan import _SCALES, find_infinite
from mesh.weights.shards.tensor_types import BLOCK_TYPES, num_bytes
from tests.support.releases import PackedRelease, pack_tiny

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedRelease:
    return pack_tiny(tmp_path_factory.mktemp("packed"), num_layers=2)


@pytest.fixture
def release(packed: PackedRelease, tmp_path: Path) -> Release:
    """A copy to spoil."""
    import shutil

    shutil.copytree(packed.directory, tmp_path / "release")
    return Release.open(tmp_path / "release", packed.trust)


def outcomes(verification: Verification) -> dict[str, Outcome]:
    return {step.name: step.outcome for step in verification.steps}


def test_sound_release_passes_every_step(release: Release, packed: PackedRelease) -> None:
    found = verify_release(release, packed.trust, deep=True, revocation=lambda *_: "listed")
    assert set(outcomes(found).values()) == {Outcome.PASSED}
    assert found.verdict() is None
    assert [shard.ref for shard in found.shards] == list(packed.manifest.shards)


def test_what_was_not_looked_at_is_said(release: Release, packed: PackedRelease) -> None:
    found = verify_release(release, packed.trust)
    assert {name for name, how in outcomes(found).items() if how is Outcome.NOT_CHECKED} == {
        "revocation",
        "contents",
    }
    assert found.ok


@pytest.mark.parametrize("deep", [False, True])
def test_no_byte_of_a_release_is_hashed_twice(
    release: Release, packed: PackedRelease, monkeypatch: pytest.MonkeyPatch, deep: bool
) -> None:
    hashed = 0
    inner = merkle.leaves_of

    def counting(data: Any) -> bytes:
        nonlocal hashed
        hashed += len(data)
        return inner(data)

    monkeypatch.setattr(merkle, "leaves_of", counting)
    monkeypatch.setattr("mesh.weights.shards.shard_check.leaves_of", counting)
    verify_release(release, packed.trust, deep=deep)
    # Less than a block at the end of aux is hashed without ``leaves_of``.
    assert packed.manifest.total_bytes - merkle.BLOCK_BYTES < hashed <= packed.manifest.total_bytes


@pytest.mark.parametrize("place", ["shard", "directory", "stranger"])
def test_symbolic_link_in_a_release_is_refused(
    release: Release, packed: PackedRelease, tmp_path: Path, place: str
) -> None:
    shards = release.directory / "tiny"
    target = {"shard": shards / "aux.safetensors", "directory": shards, "stranger": shards / "x"}[place]
    outside = tmp_path / "outside"
    if target.exists():
        target.rename(outside)
    target.symlink_to(outside)
    found = verify_release(release, packed.trust)
    assert outcomes(found)["files"] is Outcome.FAILED
    assert isinstance(found.verdict(), IntegrityError)
    assert str(target.relative_to(release.directory)) in str(found.verdict())


def test_expired_manifest_is_a_matter_of_policy(release: Release, packed: PackedRelease) -> None:
    expired = replace(
        release,
        manifest=replace(release.manifest, created="2025-01-01T00:00:00Z", expires="2026-01-01T00:00:00Z"),
    )
    found = verify_release(expired, packed.trust, now=NOW)
    assert outcomes(found)["expiry"] is Outcome.FAILED
    assert isinstance(found.verdict(), LicenseRefused)
    assert verify_release(expired, packed.trust, now=NOW.replace(year=2025)).ok


@pytest.mark.parametrize("field", ["notice_digest", "policy_digest"])
def test_text_that_the_manifest_names_must_be_in_aux(
    release: Release, packed: PackedRelease, field: str
) -> None:
    terms = replace(release.manifest.license, **{field: hashlib.sha256(b"terms").hexdigest()})
    promised = replace(release, manifest=replace(release.manifest, license=terms))
    assert outcomes(verify_release(promised, packed.trust))["licence"] is Outcome.FAILED


def test_withdrawn_release_fails_by_its_reason(release: Release, packed: PackedRelease) -> None:
    def withdrawn(*_: object) -> str:
        raise LicenseRefused("revoked: licence withdrawn")

    found = verify_release(release, packed.trust, revocation=withdrawn)
    assert isinstance(found.verdict(), LicenseRefused)
    assert "licence withdrawn" in str(found.verdict())


def test_lie_outweighs_broken_rule_and_gap(release: Release, packed: PackedRelease) -> None:
    shards = release.directory / "tiny"
    (shards / "embed.safetensors").unlink()
    assert type(verify_release(release, packed.trust).verdict()) is NotFound
    (shards / "head.safetensors").write_bytes(b"")
    assert type(verify_release(release, packed.trust).verdict()) is IntegrityError


@pytest.mark.parametrize("type_", ["F32", "F16", "BF16", *BLOCK_TYPES])
@pytest.mark.parametrize("cut", [1000, 1024, 4099])
def test_infinity_is_found_wherever_chunks_are_cut(type_: str, cut: int) -> None:
    shape = (5, 512)
    header, head = lay_out("layer", 0, "0" * 64, [("a.weight", type_, shape), ("b.weight", "BF16", (3,))])
    clean = bytearray(head + bytes(num_bytes(type_, shape) + 6))

    def scan(data: bytes) -> list[str]:
        view = memoryview(data)
        found: list[str] = []
        for at in range(0, len(data), cut):
            found += find_infinite(header, at, view[at : at + cut + 256], min(cut, len(data) - at))
        return found

    assert scan(clean) == []
    step = {"F32": 4, "F16": 2, "BF16": 2}.get(type_) or BLOCK_TYPES[type_][1]
    infinity = {
        "F32": np.float32(np.inf).tobytes(),
        "BF16": b"\x80\xff",
    }.get(type_, np.float16(np.nan).tobytes())
    for index in range(num_bytes(type_, shape) // step):
        for offset in _SCALES.get(type_, (0,)):
            spoiled, at = bytearray(clean), len(head) + index * step + offset
            spoiled[at : at + len(infinity)] = infinity
            assert scan(spoiled) == ["a.weight"]
