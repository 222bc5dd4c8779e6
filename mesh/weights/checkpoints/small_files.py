"""The small files beside a checkpoint's weights: read bounded, parsed strictly, and remembered for the source digest."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh import strict_json
from mesh.errors import CheckpointUnsupported, NotFound

# Publishers spell them in upper, lower and mixed case; the first of each that is there is taken.
LICENSE_NAMES = ("license", "license.txt", "license.md")
NOTICE_NAMES = ("notice", "notice.txt", "notice.md")
POLICY_NAMES = (
    "use_policy.md",
    "use_policy.txt",
    "use_policy",
    "acceptable_use_policy.md",
    "acceptable_use_policy.txt",
)
MAX_JSON_BYTES = 64 * 1024 * 1024  # a tokenizer.json of 2^18 tokens has some 35 MB
MAX_TEXT_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Terms:
    """Under what terms weights were handed out, in their publisher's texts; None where there is none."""

    license: bytes | None = None
    notice: bytes | None = None  # who passes them on has to include it
    policy: bytes | None = None  # what they may not be used for


class SmallFiles:
    def __init__(self, directory: Path, kind: str) -> None:
        self.directory, self.kind = directory, kind
        self.read: list[Path] = []

    def path(self, name: str) -> Path:
        return self.directory / name

    def bytes(self, name: str, max_bytes: int) -> bytes:
        """Raises NotFound, CheckpointUnsupported."""
        path = self.path(name)
        if not path.is_file():
            raise NotFound(f"{path} does not exist; {self.kind} has one")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise CheckpointUnsupported(f"{path} is larger than {max_bytes} bytes")
        if path not in self.read:
            self.read.append(path)
        return data

    def json(self, name: str, *, optional: bool = False) -> dict[str, Any]:
        if optional and not self.path(name).is_file():
            return {}
        return parse_object(self.path(name), self.bytes(name, MAX_JSON_BYTES))

    def terms(self) -> Terms:
        """The texts that lie beside the weights and go with them."""
        names = {path.name.lower(): path.name for path in sorted(self.directory.iterdir()) if path.is_file()}
        return Terms(*(self._first(names, wanted) for wanted in (LICENSE_NAMES, NOTICE_NAMES, POLICY_NAMES)))

    def _first(self, names: Mapping[str, str], wanted: Sequence[str]) -> builtins.bytes | None:
        name = next((names[name] for name in wanted if name in names), None)
        return None if name is None else self.bytes(name, MAX_TEXT_BYTES)


def parse_object(path: Path, data: bytes) -> dict[str, Any]:
    """The JSON object in ``data``. Raises CheckpointUnsupported by the file's name."""
    try:
        value = strict_json.loads(data, max_bytes=MAX_JSON_BYTES)
    except ValueError as exc:
        raise CheckpointUnsupported(f"{path}: {exc}") from exc
    if not isinstance(value, dict):
        raise CheckpointUnsupported(f"{path}: expected a JSON object")
    return value
