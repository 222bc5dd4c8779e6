"""A catalog as a node sees it: pinned once, refreshed from anybody, believed only as far as it is signed.

    client = CatalogClient(data / "catalog", pinned_root, source)
    view = client.refresh()                       # the TUF client workflow, all of its checks
    release = view.release("models/acme/tiny/manifest.dsse.json")
    release.manifest, release.trust               # what the publisher says, and by whose keys

What was seen last is kept on disk: a coordinator that shows an older catalog than yesterday's is refused today. One
client per directory at a time. Knows neither gRPC nor the clock of anybody else; expiry is judged by this machine's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import TargetFile
from tuf.ngclient import Updater, UpdaterConfig

from mesh.errors import CatalogExpired, CatalogRefused, IntegrityError, MeshError, NotFound
from mesh.weights.disk import naming_full_disk
from mesh.weights.trust.catalog import documents as docs
from mesh.weights.trust.catalog.documents import Document
from mesh.weights.trust.catalog.files import MAX_METADATA_BYTES
from mesh.weights.trust.catalog.names import (
    MAX_ROOT_BYTES,
    REVOCATIONS,
    ROOT,
    SNAPSHOT,
    TAKEDOWN,
    TARGETS,
    TIMESTAMP,
    manifest_path,
    parse_manifest_path,
    publisher_of,
    publisher_role,
)
from mesh.weights.trust.catalog.sources import Source, SourceFetcher
from mesh.weights.trust.manifest import Manifest
from mesh.weights.trust.revocation import RevocationList
from mesh.weights.trust.signing import MAX_ENVELOPE_BYTES, TrustRoot, open_manifest, signer_of

MAX_REVOCATIONS_BYTES = 1024 * 1024
MAX_ROOT_ROTATIONS = 256
_ANY_MODEL = "any"  # asking for some path of a publisher loads and verifies that publisher's role

_CONFIG = UpdaterConfig(
    max_root_rotations=MAX_ROOT_ROTATIONS,
    root_max_length=MAX_ROOT_BYTES,
    timestamp_max_length=16 * 1024,
    snapshot_max_length=MAX_METADATA_BYTES,
    targets_max_length=MAX_METADATA_BYTES,
)


@dataclass(frozen=True, slots=True)
class CatalogRelease:
    """A manifest that is published now: the target's bytes, and the publisher's keys, one of which signed it."""

    path: str
    publisher: str
    envelope: bytes
    manifest: Manifest
    trust: TrustRoot
    signer: str  # fingerprint
    fresh_until: float  # seconds since 1970; of everything that vouches for it, what expires first


@dataclass(frozen=True, slots=True)
class SignedRevocations:
    """The revocation list's bytes as the takedown role signed them, and until when that signature is good."""

    data: bytes
    version: int  # of the takedown role; rises with every list
    expires: float  # seconds since 1970


class CatalogClient:
    """``pinned_root`` is trusted as it is: whoever makes a client has compared its digest, or brought it along."""

    def __init__(self, state: Path, pinned_root: bytes, source: Source) -> None:
        self._pinned, self._source = pinned_root, source
        root = parse_root(pinned_root)
        self.catalog_id = docs.catalog_id_of(root)
        self._directory = state / self.catalog_id

    def refresh(self) -> CatalogView:
        """The catalog's state of now. Raises CatalogRefused, CatalogExpired, NotFound, or what the source raises."""
        metadata, targets = self._directory / "metadata", self._directory / "targets"
        with naming_full_disk(self._directory), _translated():
            metadata.mkdir(parents=True, exist_ok=True, mode=0o700)
            targets.mkdir(exist_ok=True)
            updater = Updater(
                str(metadata),
                "metadata/",
                str(targets),
                "targets/",
                SourceFetcher(self._source),
                _CONFIG,
                bootstrap=self._pinned,
            )
            updater.refresh()
        return CatalogView(updater, metadata)


class CatalogView:
    """One consistent state of a catalog. Delegated roles and targets are fetched, and verified, when asked for."""

    def __init__(self, updater: Updater, metadata: Path) -> None:
        self._updater, self._directory = updater, metadata
        self.problems: dict[
            str, IntegrityError
        ] = {}  # publishers, or paths, that cannot be believed now: why
        # What tuf has just verified it has also just written; there is no other public way to read it.
        self._top = {role: self._read(role) for role in (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)}

    @property
    def version(self) -> int:
        """Of the timestamp: rises with every change of the catalog, and when it is signed anew."""
        return int(self._top[TIMESTAMP].signed.version)

    @property
    def root_version(self) -> int:
        return int(self._top[ROOT].signed.version)

    @property
    def fresh_until(self) -> float:
        """Seconds since 1970; afterwards nobody knows whether this is still what the catalog says."""
        return min(float(document.signed.expires.timestamp()) for document in self._top.values())

    @property
    def publishers(self) -> tuple[str, ...]:
        """Who may publish and has done so."""
        roles = (publisher_of(role) for role in docs.delegated_roles(self._top) if self._is_listed(role))
        return tuple(publisher for publisher in roles if publisher is not None)

    def release(self, path: str) -> CatalogRelease:
        """The manifest at a target path. Raises NotFound if the catalog does not list it, CatalogRefused and kin."""
        if (parsed := parse_manifest_path(path)) is None:
            raise CatalogRefused(f"{path[:200]!r} is no path of a manifest in a catalog")
        publisher, name = parsed
        role = publisher_role(publisher)
        if not self._is_listed(role):
            raise NotFound(f"the catalog has no publisher {publisher!r}, or no longer")
        envelope = self._target(path, MAX_ENVELOPE_BYTES)
        if envelope is None:
            raise NotFound(f"the catalog does not list {path}, or no longer; ask its publisher")
        trust = TrustRoot.of(*docs.keys_of(role, self._top).values())
        manifest = open_manifest(envelope, trust)
        if manifest.name != name:
            raise CatalogRefused(f"catalog target {path} is a manifest named {manifest.name!r}")
        expires = self._read(role).signed.expires.timestamp()
        return CatalogRelease(
            path=path,
            publisher=publisher,
            envelope=envelope,
            manifest=manifest,
            trust=trust,
            signer=signer_of(envelope, trust).key_id,
            fresh_until=min(self.fresh_until, expires),
        )

    def find(self, envelope: bytes) -> CatalogRelease:
        """The release that has exactly this manifest envelope, whoever published it. Raises NotFound."""
        digest = hashlib.sha256(envelope).hexdigest()
        for path, target in self._manifests():
            if target.hashes.get("sha256") == digest:
                return self.release(path)
        raise self._not_found(
            "this manifest is not in the catalog, or no longer; another version or signature of it may be"
        )

    def find_release(self, release_id: str) -> CatalogRelease:
        """The release of that id, under whatever signature the catalog has now. Raises NotFound."""
        for path, target in self._manifests():
            custom = target.custom
            if isinstance(custom, dict) and custom.get("release_id") == release_id:
                found = self.release(path)
                if found.manifest.release_id == release_id:
                    return found
        raise self._not_found(f"release {release_id[:16]} is not in the catalog, or no longer")

    def find_name(self, name: str) -> CatalogRelease:
        """The release called ``name`` or ``publisher/name``. Raises NotFound, also where a name is not enough."""
        publisher, _, model = name.rpartition("/")
        asked = [publisher] if publisher else self.publishers
        paths = [path for path, _ in self._manifests() if path in {manifest_path(p, model) for p in asked}]
        if len(paths) != 1:
            found = "several have one" if paths else "there is none"
            raise self._not_found(f"no release {name!r} in the catalog: {found}; name it PUBLISHER/NAME")
        return self.release(paths[0])

    def releases(self) -> list[CatalogRelease]:
        """All that can be believed; ``problems`` says what cannot, and takes nothing else with it."""
        found = []
        for path, _ in self._manifests():
            try:
                found.append(self.release(path))
            except IntegrityError as exc:  # signed with a key that is no longer its publisher's
                self.problems[path] = exc
        return found

    def revocations(self) -> SignedRevocations | None:
        """The revocation list; None if there never was one. Raises CatalogExpired when it is out of date."""
        if not self._is_listed(TAKEDOWN):
            return None
        data = self._target(REVOCATIONS, MAX_REVOCATIONS_BYTES)
        if data is None:
            return None
        takedown = self._read(TAKEDOWN)
        return SignedRevocations(data, takedown.signed.version, takedown.signed.expires.timestamp())

    def revocation_list(self) -> RevocationList | None:
        """The same, read. Raises ManifestInvalid for one that is none."""
        signed = self.revocations()
        return None if signed is None else RevocationList.parse(signed.data)

    def _manifests(self) -> Iterator[tuple[str, TargetFile]]:
        """Every manifest that is published, in the order of the delegations."""
        for publisher in self.publishers:
            try:
                with _translated():
                    self._updater.get_targetinfo(manifest_path(publisher, _ANY_MODEL))
            except CatalogRefused as exc:  # one publisher's trouble is not the others'
                self.problems[publisher] = exc
                continue
            targets = self._read(publisher_role(publisher)).signed.targets
            for path in sorted(targets):
                # A role may list what it has no right to: such a path is nobody's.
                if (parsed := parse_manifest_path(path)) is not None and parsed[0] == publisher:
                    yield path, targets[path]

    def _not_found(self, what: str) -> MeshError:
        """If it may be hidden behind a publisher who cannot be believed, that is what has to be said."""
        return next(iter(self.problems.values()), NotFound(f"{what}; see: mesh catalog show"))

    def _target(self, path: str, max_bytes: int) -> bytes | None:
        with naming_full_disk(self._directory), _translated():
            target = self._updater.get_targetinfo(path)
            if target is None:
                return None
            if target.length > max_bytes:  # size before content
                raise CatalogRefused(
                    f"catalog target {path}: {target.length} bytes, at most {max_bytes} allowed"
                )
            file = self._updater.find_cached_target(target) or self._updater.download_target(target)
            data = Path(file).read_bytes()
            target.verify_length_and_hashes(data)
        return data

    def _is_listed(self, role: str) -> bool:
        return (
            docs.delegation(role, self._top) is not None and f"{role}.json" in self._top[SNAPSHOT].signed.meta
        )

    def _read(self, role: str) -> Document:
        return docs.parse(role, (self._directory / f"{role}.json").read_bytes())


def parse_root(data: bytes) -> Document:
    """A root that signs itself, as whoever pins it must see. Raises CatalogRefused."""
    if len(data) > MAX_ROOT_BYTES:
        raise CatalogRefused(f"catalog root of {len(data)} bytes, at most {MAX_ROOT_BYTES} allowed")
    root = docs.parse(ROOT, data)
    if not docs.is_signed(ROOT, {ROOT: root}):
        raise CatalogRefused(
            f"catalog root version {root.signed.version} is not signed by enough of its own keys"
        )
    return root


@contextmanager
def _translated() -> Iterator[None]:
    """tuf's errors as ours: what happened, and what whoever reads it can do."""
    try:
        yield
    except ExpiredMetadataError as exc:
        raise CatalogExpired(
            f"catalog: {_said(exc)}: it was not renewed in time, or somebody keeps the newer one from you; "
            "the operator renews it with: mesh catalog refresh (snapshot, timestamp) or mesh catalog renew"
        ) from exc
    except DownloadLengthMismatchError as exc:
        raise CatalogRefused(f"catalog: {_said(exc)}; whoever serves it is at fault") from exc
    except DownloadHTTPError as exc:
        raise NotFound(f"catalog: {_said(exc)}; is that a catalog, and whole?") from exc
    except DownloadError as exc:
        if isinstance(exc.__cause__, MeshError):  # the source has said it already
            raise exc.__cause__ from exc
        raise CatalogRefused(f"catalog: {_said(exc)}") from exc
    except RepositoryError as exc:
        raise CatalogRefused(
            f"catalog: {_said(exc)}; it is not what its keys signed, or older than what was seen before"
        ) from exc
    except (ValueError, KeyError) as exc:
        raise CatalogRefused(f"catalog: not TUF metadata: {_said(exc)}") from exc


def _said(exc: Exception) -> str:
    return " ".join(str(exc).split())[:300]
