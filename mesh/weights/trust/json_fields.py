"""Reading signed JSON field by field, so that nothing is skipped, guessed or left over.

    top = Fields("manifest", strict_json.loads(data, max_bytes=MAX_MANIFEST_BYTES))
    name = top.text("name")
    top.done()  # an unknown field is an error: who signed it meant something by it

Knows types and where in the document it stands. Knows nothing of what the fields mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mesh.errors import ManifestInvalid

MAX_TEXT_CHARS = 300


class Fields:
    """A JSON object of which every field is taken once. Raises ManifestInvalid, naming the place."""

    def __init__(self, where: str, value: object) -> None:
        if not isinstance(value, dict):
            raise ManifestInvalid(f"{where}: expected an object")
        self._where, self._left = where, dict(value)

    def __contains__(self, key: str) -> bool:
        """Whether the field is there and was not taken yet."""
        return key in self._left

    def take(self, key: str) -> Any:
        if key not in self._left:
            raise ManifestInvalid(f"{self._where}: field {key!r} is missing")
        return self._left.pop(key)

    def text(self, key: str) -> str:
        value: str = self._typed(key, str)
        if len(value) > MAX_TEXT_CHARS:
            raise ManifestInvalid(f"{self._where} {key}: longer than {MAX_TEXT_CHARS} characters")
        return value

    def optional_text(self, key: str) -> str | None:
        """None where the field is absent; a null would be a second spelling of that, and is refused."""
        return self.text(key) if key in self else None

    def integer(self, key: str) -> int:
        return self._typed(key, int)  # type: ignore[no-any-return]

    def boolean(self, key: str) -> bool:
        return self._typed(key, bool)  # type: ignore[no-any-return]

    def object(self, key: str) -> Fields:
        return Fields(f"{self._where} {key}", self.take(key))

    def objects(self, key: str) -> Iterator[Fields]:
        """The objects of a list; each is to be read to its end (``done``)."""
        for index, item in enumerate(self._typed(key, list)):
            yield Fields(f"{self._where} {key}[{index}]", item)

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._typed(key, list)
        if not all(isinstance(value, str) and len(value) <= MAX_TEXT_CHARS for value in values):
            raise ManifestInvalid(
                f"{self._where} {key}: expected texts of at most {MAX_TEXT_CHARS} characters"
            )
        return tuple(values)

    def done(self) -> None:
        if self._left:
            raise ManifestInvalid(f"{self._where}: unknown field {min(self._left)!r}")

    def _typed(self, key: str, kind: type) -> Any:
        value = self.take(key)
        if type(value) is not kind:
            raise ManifestInvalid(
                f"{self._where} {key}: expected {kind.__name__}, found {type(value).__name__}"
            )
        return value
