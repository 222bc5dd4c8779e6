"""Where a catalog's files come from: a directory here; a coordinator or a web server elsewhere.

A source is a function from a file's name (``metadata/timestamp.json``) to its bytes in pieces. It raises NotFound for a
file that is not there and Unreachable when nobody answers. It is believed in nothing, not even in coming to an end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface

from mesh.errors import NotFound
from mesh.weights.trust.catalog.names import is_file_name

Source = Callable[[str], Iterator[bytes]]

_PIECE_BYTES = 64 * 1024


def directory_source(directory: Path) -> Source:
    def read(name: str) -> Iterator[bytes]:
        if not is_file_name(name):
            raise NotFound(f"{name[:100]!r} is no file of a catalog")
        try:
            file = (directory / name).open("rb")
        except FileNotFoundError as exc:
            raise NotFound(f"{directory / name} does not exist") from exc
        with file:
            while piece := file.read(_PIECE_BYTES):
                yield piece

    return read


class SourceFetcher(FetcherInterface):
    """A source as tuf's client asks for files; tuf bounds how much is taken of it."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield from self._source(url)
        except NotFound as exc:
            raise DownloadHTTPError(str(exc), 404) from exc
