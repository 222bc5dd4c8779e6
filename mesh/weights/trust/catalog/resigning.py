"""Another signature over the same manifest: after a key was rotated, a release stays the release it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mesh.weights.disk import replace_whole
from mesh.weights.releases.release import MANIFEST_FILE, read_envelope
from mesh.weights.trust.catalog.plan import Outcome
from mesh.weights.trust.catalog.repository import Catalog
from mesh.weights.trust.signing import PrivateKey, TrustRoot, open_manifest, sign_manifest


def resign_release(
    catalog: Catalog,
    publisher: str,
    release: Path,
    signer: PrivateKey,
    signers: Sequence[PrivateKey],
    believed: TrustRoot,
) -> Outcome:
    """Sign the manifest in ``release`` with ``signer``, publish that, and put it in the place of the old one.

    The old signature must be of a key that is ``believed``, or the publisher's: nobody gives a stranger's manifest a good
    name by accident. Raises UnknownKey and other IntegrityErrors, NotFound.
    """
    file = release / MANIFEST_FILE
    keys = [*believed.keys.values(), *catalog.publisher_trust(publisher).keys.values()]
    manifest = open_manifest(read_envelope(file), TrustRoot.of(*keys))
    signed = sign_manifest(manifest, signer)
    outcome = catalog.add_release(publisher, signed, signers)
    replace_whole(file, signed)
    return outcome
