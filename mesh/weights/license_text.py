"""The text that goes with a license id: given, found beside the weights, or one of those bundled here.

A release always carries the full text; its digest is in the manifest and in every shard. Knows texts, not law.
"""

from __future__ import annotations

from importlib.resources import files

from mesh.errors import UsageError

# Canonical SPDX ids by their lower-case spelling
_BUNDLED = {"apache-2.0": "Apache-2.0"}


def resolve_license(license_id: str, given: bytes | None, found: bytes | None) -> tuple[str, bytes, bool]:
    """The canonical id, the text (``given`` by the user, else bundled, else ``found`` with the checkpoint), and whether
    it is an open license, which nobody has to accept before using the weights.

    Raises UsageError if there is none.
    """
    bundled_id = _BUNDLED.get(license_id.lower())
    bundled = (
        None
        if bundled_id is None
        else (files("mesh.weights") / "licenses" / f"{bundled_id}.txt").read_bytes()
    )
    if given is not None:
        text, source = given, "the license file"
    elif bundled is not None:
        text, source = bundled, str(bundled_id)
    elif found is not None:
        text, source = found, "the checkpoint's LICENSE"
    else:
        raise UsageError(
            f"license {license_id}: its text is not bundled (bundled: {', '.join(_BUNDLED.values())})"
            " and the checkpoint has no LICENSE; pass it with --license-file FILE"
        )
    if not text.strip():
        raise UsageError(f"license {license_id}: {source} is empty")
    # Open is what the bundled text grants; other words under its name are other terms, to be read and accepted.
    return bundled_id or license_id, text, text == bundled
