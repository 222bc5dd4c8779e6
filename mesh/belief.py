"""What is believed about one release: whose keys may have signed it, who says so, and whether it may still be used.

Pure values; where they come from (a list of keys, a catalog) is the caller's to know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mesh.weights.trust.manifest import Manifest, ShardRef
from mesh.weights.trust.signing import TrustRoot

# May these shards of a release no longer be used? Raises a MeshError if so; returns what a reader is told.
RevocationCheck = Callable[[Manifest, Sequence[ShardRef]], str]


@dataclass(frozen=True, slots=True)
class Belief:
    """``envelope``, ``said`` and ``revocation`` come from a catalog; keys alone know of none of them."""

    trust: TrustRoot
    envelope: bytes | None = (
        None  # the same manifest as it is signed today, perhaps by another key than yesterday
    )
    said: str | None = None
    revocation: RevocationCheck | None = None


Believer = Callable[[bytes], Belief]  # of the release whose signed manifest is in that envelope
