"""Whom a command believes: the keys of --trust, or the keys that a catalog gives the publisher of this very release.

believe = believer(trust_file, catalog, token)      # whatever is wrong with the command line is said here
belief = believe(envelope)                          # of one release
open_manifest(envelope, belief.trust)
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mesh.belief import Belief, Believer, RevocationCheck
    from mesh.token import JoinToken
    from mesh.weights.trust.catalog.client import CatalogRelease, CatalogView
    from mesh.weights.trust.catalog.sources import Source
    from mesh.weights.trust.manifest import Manifest, ShardRef
    from mesh.weights.trust.signing import TrustRoot

CatalogOption = Annotated[
    str | None,
    typer.Option(
        "--catalog",
        help="DIR, URL or, with --token, a coordinator's HOST:PORT: the catalog whose root --trust names."
        " The release must be listed there today.",
    ),
]

_CONNECT_SECONDS = 10.0


def believer(trust_file: Path | None, catalog: str | None, token: str | None = None) -> Believer:
    """What is believed of a manifest in an envelope. Raises NotFound, UsageError, CatalogRefused and kin."""
    from mesh.belief import Belief
    from mesh.weights.trust.keyring import trusted_keys

    if catalog is None:
        known = Belief(trusted_keys(trust_file))  # a list of keys, which has neither expiry nor revocation
        return lambda envelope: known
    view = open_catalog(catalog_root(trust_file), catalog, token)
    return lambda envelope: _listed(view, envelope)


def catalog_root(trust_file: Path | None) -> bytes:
    """What --trust names beside --catalog. Raises UsageError for anything but a catalog's root."""
    from mesh.errors import UsageError
    from mesh.weights.trust.catalog.names import is_catalog_root
    from mesh.weights.trust.keyring import read_trust

    root = read_trust(trust_file) if trust_file is not None else None
    if root is None or not is_catalog_root(root):
        raise UsageError(
            "--catalog needs --trust ROOT.json, the catalog's root as its operator gave it to you"
        )
    return root


def believed_keys(release: Path, trust_file: Path | None, catalog: str | None) -> TrustRoot:
    """The keys one of which must have signed ``release``, a directory or a manifest's envelope."""
    from mesh.errors import NotFound
    from mesh.weights.releases.release import MANIFEST_FILE, read_envelope

    believe = believer(trust_file, catalog)
    envelope = read_envelope(release / MANIFEST_FILE if release.is_dir() else release)
    belief = believe(envelope)
    if belief.envelope not in (None, envelope):
        raise NotFound(
            f"{release}: the catalog lists this release under another signature now; `mesh catalog resign` writes that"
            " into a release, or fetch its manifest again"
        )
    return belief.trust


def believe_token(token: JoinToken, target: str, trust_root: bytes, envelope: bytes) -> Belief:
    """What a join token makes its holder believe of a release that the coordinator at ``target`` handed out.

    Raises IntegrityError for a trust root that is not the token's. Not for a thread with an event loop.
    """
    from mesh.belief import Belief
    from mesh.errors import IntegrityError
    from mesh.weights.trust.catalog.names import is_catalog_root
    from mesh.weights.trust.signing import TrustRoot

    if hashlib.sha256(trust_root).digest() != token.trust_digest:
        raise IntegrityError(
            "the coordinator's trust root is not the one in the join token; ask for a new token, or pass --trust FILE"
        )
    if not is_catalog_root(trust_root):
        return Belief(TrustRoot.from_bytes(trust_root))
    return _listed(open_catalog(trust_root, target, token.encode()), envelope)


def open_catalog(root: bytes, where: str, token: str | None = None) -> CatalogView:
    """The catalog's state of now; what was seen last is remembered in the user's data directory."""
    from mesh.dirs import data_dir
    from mesh.weights.trust.catalog.client import CatalogClient

    return CatalogClient(data_dir() / "catalogs", root, open_source(where, token)).refresh()


def open_source(where: str, token: str | None = None) -> Source:
    """A directory, whatever web server has its files, or a coordinator that serves it."""
    from mesh.errors import NotFound
    from mesh.weights.trust.catalog.sources import directory_source

    if where.startswith(("https://", "http://")):
        return _web_source(where.rstrip("/"))
    if Path(where).is_dir():
        return directory_source(Path(where))
    host, _, port = where.rpartition(":")
    if host and port.isdigit():
        return _coordinators_source(where, token)
    raise NotFound(f"catalog {where}: no such directory; expected a directory, an http(s) URL or HOST:PORT")


def _listed(view: CatalogView, envelope: bytes) -> Belief:
    """Raises NotFound for what the catalog does not list today."""
    from mesh.belief import Belief
    from mesh.errors import NotFound, UnknownKey
    from mesh.weights.trust.signing import peek_manifest

    try:
        release = view.find(envelope)
    except UnknownKey as exc:  # ``--trust`` is no remedy here
        raise UnknownKey(
            exc.key_id,
            f"the catalog lists this release under {exc.key_id}, which is no longer a key of its publisher; "
            "with one that is, they sign it anew: mesh catalog resign",
        ) from exc
    except NotFound:
        # Signed anew since: the same bytes, so the same release, under a key that counts today.
        release = view.find_release(peek_manifest(envelope).release_id)
    said = (
        f"publisher {release.publisher} of catalog root {view.root_version}, which lists this manifest"
        f" (catalog version {view.version}), good until {_time(release.fresh_until)}"
    )
    return Belief(release.trust, release.envelope, said, _revocation_check(view, release))


def _revocation_check(view: CatalogView, listed: CatalogRelease) -> RevocationCheck:
    from mesh.errors import CatalogExpired
    from mesh.weights.trust.revocation import RevocationsStale

    def check(manifest: Manifest, shards: Sequence[ShardRef]) -> str:
        try:
            revocations = view.revocation_list()
        except CatalogExpired as exc:
            raise RevocationsStale(
                "the revocation list has expired and no newer one came, so nobody can say what may still be used;"
                " the operator renews it with: mesh revoke --refresh"
            ) from exc
        if revocations is None:
            return "the catalog has revoked nothing yet"
        revocations.check(manifest, listed.signer, shards, time.time())
        return f"list {revocations.version} of {revocations.issued}, good until {revocations.expires}, has nothing of it"

    return check


def _coordinators_source(target: str, token: str | None) -> Source:
    from mesh.errors import UsageError
    from mesh.token import JoinToken
    from mesh.wire.catalog_source import coordinator_source
    from mesh.wire.channel import format_endpoint, parse_endpoint

    if token is None:
        raise UsageError(f"--catalog {target} needs --token, a join token of that coordinator")
    endpoint = format_endpoint(*parse_endpoint(target, what="--catalog"))
    return coordinator_source(endpoint, JoinToken.parse(token).secret)


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _web_source(url: str) -> Source:
    import httpx

    from mesh.errors import NotFound, Unreachable

    def read(name: str) -> Iterator[bytes]:
        try:
            with httpx.stream("GET", f"{url}/{name}", timeout=_CONNECT_SECONDS) as response:
                if response.status_code in (403, 404):  # buckets say 403 for what is not there
                    raise NotFound(f"{url}/{name} does not exist")
                if response.status_code != 200:
                    raise Unreachable(f"{url}/{name}: the server answers {response.status_code}")
                yield from response.iter_raw(64 * 1024)
        except httpx.HTTPError as exc:
            raise Unreachable(f"catalog {url} does not answer: {exc}") from exc

    return read
