"""The text that goes with a license id: given, found beside the weights, or one of those bundled here.

A release always carries the full text; its digest is in the manifest and in every shard. Knows texts, not law.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from mesh.errors import IntegrityError, UsageError
from mesh.weights.shards.shard import Shard
from mesh.weights.trust.manifest import LicenseRef

# Canonical SPDX ids by their lower-case spelling
_BUNDLED = {"apache-2.0": "Apache-2.0"}


MAX_TEXTS_BYTES = 4 * 1024 * 1024  # all three together


@dataclass(frozen=True, slots=True)
class LicenseTexts:
    """What somebody has to read before accepting: the licence, and what it obliges whoever passes weights on to show."""

    license: bytes
    notice: bytes | None = None
    policy: bytes | None = None

    @classmethod
    def of_aux(cls, aux: Shard) -> LicenseTexts:
        """Those that a release carries."""

        def text(name: str) -> bytes | None:
            return bytes(aux.bytes_of(name)) if name in aux.tensors else None

        return cls(text("LICENSE") or b"", text("NOTICE"), text("USE_POLICY"))

    @property
    def named(self) -> tuple[tuple[str, bytes], ...]:
        """Those that are there, in the order to read them."""
        texts = (("LICENSE", self.license), ("NOTICE", self.notice), ("USE_POLICY", self.policy))
        return tuple((name, text) for name, text in texts if text is not None)

    def are_of(self, ref: LicenseRef) -> bool:
        """Whether the manifest names these very texts."""
        try:
            self.check(ref)
        except IntegrityError:
            return False
        return True

    def check(self, ref: LicenseRef) -> None:
        """Raises IntegrityError unless these are the texts that the manifest names: nobody accepts any others."""
        if (size := sum(len(text) for _, text in self.named)) > MAX_TEXTS_BYTES:
            raise IntegrityError(
                f"the texts of {ref.id} have {size} bytes, at most {MAX_TEXTS_BYTES} allowed"
            )
        for what, text, digest in (
            ("licence text", self.license, ref.text_digest),
            ("NOTICE", self.notice, ref.notice_digest),
            ("USE_POLICY", self.policy, ref.policy_digest),
        ):
            if (None if text is None else hashlib.sha256(text).hexdigest()) != digest:
                raise IntegrityError(
                    f"another {what} than the manifest of this release names under {ref.id}; accept nothing, "
                    "tell the publisher"
                )


def resolve_license(license_id: str, given: bytes | None, found: bytes | None) -> tuple[str, bytes, bool]:
    """The canonical id, the text (``given`` by the user, else bundled, else ``found`` with the checkpoint), and whether
    it is an open license, which nobody has to accept before using the weights.

    Raises UsageError if there is none.
    """
    bundled_id = _BUNDLED.get(license_id.lower())
    bundled = (
        None
        if bundled_id is None
        else (files("mesh.weights.trust") / "licenses" / f"{bundled_id}.txt").read_bytes()
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
