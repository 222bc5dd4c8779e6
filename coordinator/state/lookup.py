"""Finding a row by the beginning of its id, as people type it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from mesh.errors import NotFound, UsageError

Row = TypeVar("Row")


def the_one(
    rows: Iterable[Row], id_of: Callable[[Row], str], beginning: str, *, what: str, listed_by: str
) -> Row:
    """The row whose id begins so. Raises NotFound if there is none, UsageError if there are several."""
    found = [row for row in rows if beginning and id_of(row).startswith(beginning)]
    if not found:
        raise NotFound(f"no {what} {beginning[:80]!r}; {listed_by} shows them")
    if len(found) > 1:
        raise UsageError(f"{len(found)} {what}s begin with {beginning!r}; give more of the id")
    return found[0]
