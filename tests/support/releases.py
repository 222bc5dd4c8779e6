"""Releases made on the spot: a tiny random model, packed and signed as an operator would."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.publishing import pack_release
from mesh.weights.releases.release import Release
from mesh.weights.trust.manifest import Manifest
from mesh.weights.trust.signing import PrivateKey, TrustRoot
from tests.support.tiny_models import write_tiny_checkpoint


@dataclass(frozen=True)
class PackedRelease:
    directory: Path
    trust_file: Path
    key: PrivateKey
    manifest: Manifest

    @property
    def trust(self) -> TrustRoot:
        return TrustRoot.of(self.key.public)

    def open(self) -> Release:
        return Release.open(self.directory, self.trust)


def pack(
    source: Path,
    directory: Path,
    *,
    name: str | None = None,
    license_id: str = "Apache-2.0",
    license_text: bytes | None = None,
    encode: bool = False,
) -> PackedRelease:
    """``directory`` gets ``release/`` and ``publisher.pub``."""
    directory.mkdir(parents=True, exist_ok=True)
    key = PrivateKey.generate()
    trust_file = directory / "publisher.pub"
    trust_file.write_bytes(TrustRoot.of(key.public).to_bytes())
    manifest = pack_release(
        source, directory / "release", license_id, license_text, key, name=name, encode=encode
    )
    return PackedRelease(directory / "release", trust_file, key, manifest)


def pack_tiny(
    directory: Path,
    *,
    license_id: str = "Apache-2.0",
    license_text: bytes | None = None,
    encode: bool = False,
    **shape: Any,
) -> PackedRelease:
    source = write_tiny_checkpoint(directory / "checkpoint", **shape)
    return pack(
        source, directory, name="tiny", license_id=license_id, license_text=license_text, encode=encode
    )
