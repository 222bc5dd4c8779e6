"""Where on this machine the shards of a catalog's releases lie, so that a release can be named instead of found.

``releases/PUBLISHER/NAME`` in the catalog's directory is a symbolic link. It is never served and believed in nothing: what
it leads to is checked against the catalog like any directory.
"""

from __future__ import annotations

from pathlib import Path

from mesh.errors import NotFound
from mesh.weights.trust.catalog.names import manifest_path, parse_manifest_path


def remember_place(catalog: Path, publisher: str, model: str, release: Path) -> None:
    manifest_path(publisher, model)  # raises UsageError for what is no name
    link = catalog / "releases" / publisher / model
    link.parent.mkdir(parents=True, exist_ok=True)
    beside = link.with_name(f".{model}.new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(release.resolve())
    beside.replace(link)


def find_place(catalog: Path, name: str) -> Path:
    """The directory of ``PUBLISHER/NAME``, or of ``NAME`` where one publisher has it. Raises NotFound."""
    publisher, _, model = name.rpartition("/")
    found = [
        path
        for path in sorted(catalog.glob("releases/*/*"))
        if path.name == model
        and publisher in ("", path.parent.name)
        and parse_manifest_path(f"models/{path.parent.name}/{path.name}/manifest.dsse.json")
    ]
    if len(found) != 1:
        why = "several publishers have one; name it PUBLISHER/NAME" if found else "pass its directory instead"
        raise NotFound(f"release {name[:100]!r}: no such directory, and not one place known for it: {why}")
    return found[0]
