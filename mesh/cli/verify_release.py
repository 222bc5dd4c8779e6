"""``mesh verify`` of a release on this machine: a directory that ``mesh pack`` or ``mesh pull`` wrote, or what a store holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from mesh.belief import Belief, Believer
from mesh.cli.progress import byte_progress
from mesh.cli.stores import open_holdings
from mesh.cli.verify_output import tell, to_json
from mesh.dirs import data_dir, store_dir
from mesh.errors import NotFound
from mesh.verification import verify_release
from mesh.weights.releases.release import MANIFEST_FILE, Release, read_envelope
from mesh.weights.releases.stored_release import StoredRelease
from mesh.weights.trust.acceptance import terms
from mesh.weights.trust.acceptance_book import AcceptanceBook
from mesh.weights.trust.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Found:
    """A release that nobody believes yet: where its manifest lies, and how it is opened by those who know whom to trust."""

    directory: Path
    data: Path  # of the node whose acceptances count here
    open: Callable[[Belief], Release]


def verify_here(
    release: str,
    *,
    store: Path | None,
    deep: bool,
    complete: bool,
    believe: Believer,
    as_json: bool,
) -> None:
    """Raises the verdict: IntegrityError, LicenseRefused or NotFound, whatever is worst."""
    with _find(release, store) as found:
        belief = believe(read_envelope(found.directory / MANIFEST_FILE))
        opened = found.open(belief)
        accepted = describe_acceptance(opened.manifest, found.data)
        with byte_progress("verifying") as progress:
            verification = verify_release(
                opened,
                belief.trust,
                deep=deep,
                complete=complete,
                trusted=belief.said,
                acceptance=accepted,
                revocation=belief.revocation,
                progress=progress,
            )
    if as_json:
        typer.echo(json.dumps(to_json(verification)))
    else:
        tell(verification)
    if (verdict := verification.verdict()) is not None:
        raise verdict


@contextmanager
def _find(release: str, store: Path | None) -> Iterator[Found]:
    """A release's directory of that name, else the store's, which nobody removes meanwhile. With ``store``, only the latter."""
    directory = Path(release)
    if store is None and (directory / MANIFEST_FILE).is_file():
        yield _in_directory(directory)
        return
    if store is None and not store_dir().is_dir():  # a typing error makes no store
        if directory.is_dir():
            yield _in_directory(directory)  # which says what it lacks
            return
        raise NotFound(f"release {release}: no such directory, and there is no store of yours yet")
    holdings = open_holdings(store)
    try:
        held = holdings.find(release)
    except NotFound as exc:
        if store is not None:
            raise
        lacks = f"{directory / MANIFEST_FILE} does not exist" if directory.is_dir() else "no such directory"
        raise NotFound(f"release {release}: {lacks}, and {exc}") from exc
    beside = holdings.store.directory.parent  # of a node: its data directory
    data = beside if (beside / "licenses").is_dir() else data_dir() / "node"
    with holdings.using(held):
        yield Found(
            held.directory,
            data,
            lambda belief: StoredRelease.of(held, holdings.store, belief.trust, belief.envelope),
        )


def _in_directory(directory: Path) -> Found:
    return Found(
        directory,
        data_dir() / "node",
        lambda belief: Release.open(directory, belief.trust, belief.envelope),
    )


def describe_acceptance(manifest: Manifest, data: Path) -> str | None:
    """Who accepted this release's very texts, by the signed records in a node's data directory; None if nobody did.

    Raises IntegrityError for a record that is not what was signed.
    """
    found = [
        record
        for record in AcceptanceBook(data).records()
        if (record.release_id, terms(record.license)) == (manifest.release_id, terms(manifest.license))
    ]
    return ", ".join(f"accepted {record.accepted} by {record.node_id}" for record in found) or None
