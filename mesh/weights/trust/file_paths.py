"""Paths of a release of plain files: relative, portable, and the same file to every system that unpacks them.

A path comes from a publisher's disk and is written on a stranger's, so what one system reads differently from another is
refused by name: what climbs out of the directory, what a terminal would act on, names that Windows keeps for devices, and
two names that become one where case or the composition of accents does not count.

    check_path("data/part-00000.jsonl.zst")
    check_tree(["data/a", "data/b"])

Pure. Knows nothing of disks, sizes or torrents.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

MAX_PATH_CHARS = 300  # also what a text field of a manifest may have
MAX_PART_BYTES = 200  # file systems take 255, libtorrent cuts above 240
MAX_DEPTH = 16
_FORBIDDEN = frozenset('\\:*?"<>|')
_DEVICES = frozenset({
    "con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"),
})  # fmt: skip
_PADDING = ".pad"  # libtorrent's name for the gaps between files


def check_path(path: str) -> None:
    """Raises ValueError that says which rule the path breaks."""
    parts = path.split("/")
    if len(path) > MAX_PATH_CHARS:
        raise ValueError(f"a path of more than {MAX_PATH_CHARS} characters")
    if len(parts) > MAX_DEPTH:
        raise ValueError(f"a path of {len(parts)} parts, at most {MAX_DEPTH}")
    if not path.isprintable():  # control characters, marks that turn writing around, lone surrogates
        raise ValueError("expected printable characters")
    if parts[0] == _PADDING:
        raise ValueError(f"{_PADDING!r} is BitTorrent's name for the gaps between files")
    for part in parts:
        if part in ("", ".", ".."):
            raise ValueError("expected names between single slashes, below the directory")
        if bad := sorted(_FORBIDDEN & set(part)):
            raise ValueError(f"{bad[0]!r} is not allowed in a name on every system")
        if part[0] == " " or part[-1] in " .":
            raise ValueError("a name that begins with a space, or ends with one or with a dot")
        if len(part.encode()) > MAX_PART_BYTES:
            raise ValueError(f"a name of more than {MAX_PART_BYTES} bytes")
        if part.split(".")[0].rstrip().lower() in _DEVICES:
            raise ValueError(f"{part[:20]!r} is a device's name on Windows")


def check_tree(paths: Iterable[str]) -> None:
    """That no two paths (nor their directories) are one file where upper and lower case are the same letter, and that
    nothing is a file and a directory. Raises ValueError naming the second."""
    seen: dict[str, tuple[str, bool]] = {}  # folded -> as spelled, and whether it is a file
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            found = "/".join(parts[:depth]), depth == len(parts)
            first = seen.get(key := _folded(found[0]))
            if first is not None and (first != found or found[1]):
                raise ValueError(f"{path!r} and {first[0]!r} are one path on some systems")
            seen[key] = found


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
