"""What things in a catalog are called: roles, target paths, files. Pure; a name that is not of these forms is nothing.

A catalog is a directory:

    metadata/N.root.json …                  every root since the first, so that whoever pinned any of them can follow
    metadata/N.targets.json                 who may publish what
    metadata/N.takedown.json                signs the revocation list
    metadata/N.publisher-ID.json            one publisher's manifests
    metadata/N.snapshot.json                which versions of the above belong together
    metadata/timestamp.json                 which snapshot is current
    targets/models/ID/NAME/SHA256.manifest.dsse.json
    targets/revocations/SHA256.current.json
    staged/ROLE.json                        changes that still lack signatures; never served
"""

from __future__ import annotations

import re

from mesh import strict_json
from mesh.errors import UsageError

ROOT, TARGETS, SNAPSHOT, TIMESTAMP, TAKEDOWN = "root", "targets", "snapshot", "timestamp", "takedown"
ONLINE_ROLES = (SNAPSHOT, TIMESTAMP)
REVOCATIONS = "revocations/current.json"
REVOCATION_PATHS = ["revocations/*"]
MAX_ROOT_BYTES = 128 * 1024
MANIFEST_NAME = "manifest.dsse.json"

_PUBLISHER_PREFIX = "publisher-"
_PUBLISHER = r"[a-z0-9][a-z0-9-]{0,39}"
_MODEL = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_ROLE = re.compile(rf"{ROOT}|{TARGETS}|{SNAPSHOT}|{TIMESTAMP}|{TAKEDOWN}|{_PUBLISHER_PREFIX}{_PUBLISHER}")
_MANIFEST_PATH = re.compile(rf"models/({_PUBLISHER})/({_MODEL})/manifest\.dsse\.json")
_FILE = re.compile(
    rf"metadata/(?:{TIMESTAMP}|[1-9][0-9]{{0,9}}\.(?:{ROOT}|{TARGETS}|{SNAPSHOT}|{TAKEDOWN}|{_PUBLISHER_PREFIX}{_PUBLISHER}))\.json"
    rf"|targets/models/{_PUBLISHER}/{_MODEL}/[0-9a-f]{{64}}\.manifest\.dsse\.json"
    r"|targets/revocations/[0-9a-f]{64}\.current\.json"
)


def is_catalog_root(data: bytes) -> bool:
    """Whether trusted bytes are a catalog's root and not a plain list of keys; which one was fixed by who pinned them."""
    try:
        value = strict_json.loads(data, max_bytes=MAX_ROOT_BYTES)
    except ValueError:
        return False
    return isinstance(value, dict) and "signed" in value


def is_file_name(name: str) -> bool:
    """Whether ``name`` is a file that a catalog may hand out. Nothing that matches can leave the directory."""
    return _FILE.fullmatch(name) is not None


def metadata_file(role: str, version: int) -> str:
    """``("targets", 3)`` -> ``metadata/3.targets.json``; the timestamp has no version in its name."""
    return f"metadata/{TIMESTAMP}.json" if role == TIMESTAMP else f"metadata/{version}.{role}.json"


def target_file(path: str, sha256: str) -> str:
    """Where a target's bytes lie: old ones stay beside the new, so that nobody reads half a change."""
    directory, _, base = path.rpartition("/")
    return f"targets/{directory}/{sha256}.{base}"


def is_role(name: str) -> bool:
    return _ROLE.fullmatch(name) is not None


def publisher_role(publisher: str) -> str:
    """``acme`` -> ``publisher-acme``. Raises UsageError."""
    if not re.fullmatch(_PUBLISHER, publisher):
        raise UsageError(
            f"publisher id {publisher[:80]!r}: expected 1 to 40 lower-case letters, digits and '-', not '-' first"
        )
    return _PUBLISHER_PREFIX + publisher


def publisher_of(role: str) -> str | None:
    """``publisher-acme`` -> ``acme``; None for every other role."""
    return role.removeprefix(_PUBLISHER_PREFIX) if role.startswith(_PUBLISHER_PREFIX) else None


def publisher_paths(publisher: str) -> list[str]:
    """What a publisher may sign. TUF compares part by part, so that no name reaches another's directory."""
    return [f"models/{publisher}/*/{MANIFEST_NAME}"]


def manifest_path(publisher: str, model: str) -> str:
    """The target path of a publisher's manifest of that name. Raises UsageError."""
    path = f"models/{publisher}/{model}/{MANIFEST_NAME}"
    if not _MANIFEST_PATH.fullmatch(path):
        raise UsageError(f"{path[:200]!r} is no path of a catalog: expected models/PUBLISHER/NAME")
    return path


def parse_manifest_path(path: str) -> tuple[str, str] | None:
    """(publisher, model name), or None if it is no path of a manifest."""
    found = _MANIFEST_PATH.fullmatch(path)
    return (found[1], found[2]) if found else None
