"""Whom a command believes: the keys of --trust, or the keys that a catalog gives the publisher of this very release."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mesh.weights.catalog.client import CatalogView
    from mesh.weights.catalog.sources import Source
    from mesh.weights.signing import TrustRoot

CatalogOption = Annotated[
    str | None,
    typer.Option(
        "--catalog",
        help="Directory or URL of the catalog whose root --trust names: the release must be listed there today.",
    ),
]

_CONNECT_SECONDS = 10.0


def believed_keys(release: Path, trust_file: Path | None, catalog: str | None) -> TrustRoot:
    """The keys one of which must have signed ``release``. Raises NotFound, UsageError, CatalogRefused and kin."""
    from mesh.errors import UsageError
    from mesh.weights.catalog.names import is_catalog_root
    from mesh.weights.keyring import read_trust, trusted_keys
    from mesh.weights.release import MANIFEST_FILE, read_envelope

    root = read_trust(trust_file) if trust_file is not None else None
    if catalog is None:
        return trusted_keys(trust_file)  # a list of keys, which has neither expiry nor revocation
    if root is None or not is_catalog_root(root):
        raise UsageError(
            "--catalog needs --trust ROOT.json, the catalog's root as its operator gave it to you"
        )
    envelope = read_envelope(release / MANIFEST_FILE if release.is_dir() else release)
    return open_catalog(root, catalog).find(envelope).trust


def open_catalog(root: bytes, where: str) -> CatalogView:
    """The catalog's state of now; what was seen last is remembered in the user's data directory."""
    from mesh.dirs import data_dir
    from mesh.weights.catalog.client import CatalogClient

    return CatalogClient(data_dir() / "catalogs", root, open_source(where)).refresh()


def open_source(where: str) -> Source:
    """A directory, or whatever web server has its files."""
    from mesh.errors import NotFound
    from mesh.weights.catalog.sources import directory_source

    if where.startswith(("https://", "http://")):
        return _web_source(where.rstrip("/"))
    if not Path(where).is_dir():
        raise NotFound(f"catalog {where}: no such directory; expected a directory or an http(s) URL")
    return directory_source(Path(where))


def _web_source(url: str) -> Source:
    import httpx

    from mesh.errors import NotFound, Unreachable

    def read(name: str) -> Iterator[bytes]:
        try:
            with httpx.stream("GET", f"{url}/{name}", timeout=_CONNECT_SECONDS) as response:
                if response.status_code in (403, 404):  # buckets say 403 for what is not there
                    raise NotFound(f"{url}/{name} does not exist")
                if response.status_code != 200:
                    raise Unreachable(f"{url}/{name}: the server answers {response.status_code}")
                yield from response.iter_raw(64 * 1024)
        except httpx.HTTPError as exc:
            raise Unreachable(f"catalog {url} does not answer: {exc}") from exc

    return read
