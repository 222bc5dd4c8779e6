"""The user's word on the licence of what they pull: the node's own records, or the texts shown and the word recorded."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer

from mesh.cli.asking import ask
from mesh.dirs import data_dir
from mesh.errors import IntegrityError, LicenseRefused
from mesh.weights.trust import identity
from mesh.weights.trust.acceptance import terms
from mesh.weights.trust.acceptance_book import AcceptanceBook
from mesh.weights.trust.license_text import LicenseTexts
from mesh.weights.trust.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Word:
    accepted: str | None  # the id of a licence that the user has read
    data: Path | None  # of the node whose records count; None: this user's node

    @property
    def _directory(self) -> Path:
        return self.data if self.data is not None else data_dir() / "node"

    def is_given(self, manifest: Manifest) -> bool:
        """Whether nobody has to accept it, or this node did before."""
        if not manifest.license.acceptance_required:
            return True
        if not (self._directory / "identity.key").is_file():
            return False
        node_id = identity.load_or_create(self._directory).public.key_id
        return terms(manifest.license) in AcceptanceBook(self._directory).accepted_terms(node_id)

    async def take(
        self, manifest: Manifest, texts: LicenseTexts | None, show: Callable[[str, LicenseTexts], None]
    ) -> None:
        """Show the texts, then ask for the word, then record it. Raises LicenseRefused; nothing was fetched by then."""
        license_ = manifest.license
        if texts is None:
            raise LicenseRefused(
                f"release {manifest.name} is under {license_.id}, which has to be accepted, and its text is not there:"
                " whoever serves it must put the release's LICENSE beside its manifest"
            )
        try:
            texts.check(license_)
        except IntegrityError as exc:
            raise LicenseRefused(f"release {manifest.name}: {exc}") from exc
        show(license_.id, texts)
        if self.accepted != license_.id and not await self._typed(license_.id):
            raise LicenseRefused(
                f"release {manifest.name} is under {license_.id}, shown above: read it, then pull with"
                f" --accept-license {license_.id}"
            )
        self._directory.mkdir(parents=True, exist_ok=True)
        key = identity.load_or_create(self._directory)
        AcceptanceBook(self._directory).record_for(manifest, key, time.time())

    async def _typed(self, license_id: str) -> bool:
        if self.accepted is not None or not sys.stdin.isatty():
            return False
        return await ask(f"To accept these terms type {license_id}: ") == license_id


def show_texts(license_id: str, texts: LicenseTexts) -> None:
    for name, text in texts.named:
        typer.echo(f"---- {name}: {license_id} ----", err=True)
        typer.echo(text.decode("utf-8", errors="replace").rstrip("\n"), err=True)
