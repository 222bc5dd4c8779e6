"""A catalog as its operator changes it: who may publish, what is published, whose keys count.

Every change makes a new version of one role and *stages* it. It goes live as soon as enough keys have signed, which may
take two people on two machines; until then the catalog that is served stays as it is. Then snapshot and timestamp follow
if their keys are at hand, else the coordinator sees the new files and signs them.

    catalog = Catalog.create(directory, plan, signers, clock)
    outcome = catalog.add_release("acme", envelope, signers)
    outcome.missing      # what still needs a signature, and whose

Knows metadata, keys and thresholds. Knows nothing of where keys are kept, or of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Role, Root, TargetFile, Targets

from mesh.clock import Clock, SystemClock
from mesh.errors import NotFound, UsageError
from mesh.weights.trust.catalog import documents as docs
from mesh.weights.trust.catalog.documents import TOP_ROLES, Document
from mesh.weights.trust.catalog.keys import tuf_key
from mesh.weights.trust.catalog.names import (
    ONLINE_ROLES,
    REVOCATION_PATHS,
    REVOCATIONS,
    ROOT,
    SNAPSHOT,
    TAKEDOWN,
    TARGETS,
    TIMESTAMP,
    manifest_path,
    metadata_file,
    publisher_paths,
    publisher_role,
    target_file,
)
from mesh.weights.trust.catalog.online import refresh_online
from mesh.weights.trust.catalog.plan import CatalogPlan, Outcome, RoleKeys
from mesh.weights.trust.catalog.stored import StoredCatalog
from mesh.weights.trust.signing import PrivateKey, PublicKey, open_manifest

Edit = Callable[[Document], None]


class Catalog(StoredCatalog):
    def __init__(self, directory: Path, clock: Clock | None = None) -> None:
        super().__init__(directory)
        self._clock: Clock = clock if clock is not None else SystemClock()

    @classmethod
    def open(cls, directory: Path, clock: Clock | None = None) -> Catalog:
        """Raises NotFound."""
        catalog = cls(directory, clock)
        if not (directory / "metadata").is_dir() and not catalog._files.staged_roles():
            raise NotFound(f"{directory} is no catalog; make one with: mesh catalog init {directory}")
        return catalog

    @classmethod
    def create(
        cls, directory: Path, plan: CatalogPlan, signers: Sequence[PrivateKey], clock: Clock | None = None
    ) -> tuple[Catalog, Outcome]:
        """A new catalog in a directory that does not exist or is empty. Raises UsageError, NotFound."""
        if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
            raise UsageError(f"{directory} exists and is not an empty directory; choose another")
        if not directory.absolute().parent.is_dir():
            raise NotFound(f"{directory.absolute().parent} does not exist; make it, or choose another place")
        for role, keys in (("root", plan.root), ("targets", plan.targets), ("takedown", plan.takedown)):
            keys.check(role)
        plan.online.check("online")
        directory.mkdir(exist_ok=True)
        catalog = cls(directory, clock)
        with catalog._files.changing():
            catalog._stage(ROOT, lambda document: _fill_root(document.signed, plan))
            catalog._stage(TARGETS, lambda document: _delegate(document.signed, TAKEDOWN, plan.takedown))
            catalog._stage(TAKEDOWN, _as_it_is)
            return catalog, catalog._sign_and_publish(signers)

    # -- changes

    def add_publisher(self, publisher: str, keys: RoleKeys, signers: Sequence[PrivateKey]) -> Outcome:
        """Let a publisher sign manifests under ``models/<publisher>/``. Raises UsageError if there is one of that id."""
        role = publisher_role(publisher)
        keys.check(role)
        return self._change(TARGETS, lambda document: _delegate(document.signed, role, keys), signers)

    def remove_publisher(self, publisher: str, signers: Sequence[PrivateKey]) -> Outcome:
        """Nothing that this publisher signed, or signs, counts any more. Raises NotFound."""
        role = publisher_role(publisher)

        def remove(document: Document) -> None:
            _delegated(document.signed, role)
            for key_id in list(document.signed.delegations.roles[role].keyids):
                document.signed.revoke_key(key_id, role)
            del document.signed.delegations.roles[role]

        return self._change(TARGETS, remove, signers)

    def add_release(self, publisher: str, envelope: bytes, signers: Sequence[PrivateKey]) -> Outcome:
        """Publish a signed manifest; one of the same name takes the place of the one before.

        Raises UnknownKey or another IntegrityError if none of the publisher's keys has signed it.
        """
        role = publisher_role(publisher)
        manifest = open_manifest(envelope, self.publisher_trust(publisher))
        path = manifest_path(publisher, manifest.name)
        custom = {"release_id": manifest.release_id, "name": manifest.name}
        return self._put_target(role, path, envelope, custom, signers)

    def remove_release(self, publisher: str, model: str, signers: Sequence[PrivateKey]) -> Outcome:
        """Raises NotFound."""
        path = manifest_path(publisher, model)

        def remove(document: Document) -> None:
            if document.signed.targets.pop(path, None) is None:
                raise NotFound(f"the catalog has no {path}; see: mesh catalog show")

        return self._change(publisher_role(publisher), remove, signers)

    def set_revocations(self, data: bytes, expires: float, signers: Sequence[PrivateKey]) -> Outcome:
        """Publish the revocation list, good until ``expires`` (seconds since 1970), signed by the takedown role."""
        return self._put_target(TAKEDOWN, REVOCATIONS, data, {}, signers, docs.utc(expires))

    def rotate(
        self,
        role: str,
        signers: Sequence[PrivateKey],
        *,
        add: Sequence[PublicKey] = (),
        remove: Sequence[str] = (),
        threshold: int | None = None,
    ) -> Outcome:
        """Change whose keys count for ``role``; ``remove`` takes fingerprints. Raises UsageError, NotFound."""
        delegator = ROOT if role in TOP_ROLES else TARGETS

        def edit(document: Document) -> None:
            named = _delegated(document.signed, role)
            before = docs.keys_of(role, {delegator: document})
            by_fingerprint = {key.key_id: key_id for key_id, key in before.items()}
            for fingerprint in remove:
                if fingerprint not in by_fingerprint:
                    raise NotFound(
                        f"{role} has no key {fingerprint}; it has {', '.join(sorted(by_fingerprint))}"
                    )
                document.signed.revoke_key(by_fingerprint[fingerprint], role)
            for key in add:
                document.signed.add_key(tuf_key(key), role)
            named.threshold = threshold if threshold is not None else named.threshold
            RoleKeys(tuple(docs.keys_of(role, {delegator: document}).values()), named.threshold).check(role)

        with self._files.changing():
            self._stage(delegator, edit)
            documents = {**self._live(), **self._staged()}
            # What the role signed before must hold under its new keys, or be signed again by them.
            if (
                role not in (ROOT, *ONLINE_ROLES)
                and role in documents
                and not docs.is_signed(role, documents)
            ):
                self._stage(role, _as_it_is)
            return self._sign_and_publish(signers)

    def renew(self, signers: Sequence[PrivateKey], roles: Sequence[str] = ()) -> Outcome:
        """Sign offline roles again before they expire: those named, or all of which a third of the time is left."""
        now = docs.utc(self._clock.wall())
        with self._files.changing():
            live = self._live()
            if unknown := sorted(set(roles) - set(docs.offline_roles(live))):
                raise NotFound(
                    f"no offline role {unknown[0][:60]!r}; there are {', '.join(docs.offline_roles(live))}"
                )
            due = [
                role
                for role in docs.offline_roles(live)
                if role in live and live[role].signed.expires - now < docs.lifetime(role) / 3
            ]
            for role in roles or due:
                self._stage(role, _as_it_is)
            return self._sign_and_publish(signers)

    def sign(self, signers: Sequence[PrivateKey]) -> Outcome:
        """Add signatures to whatever is staged; publish what has enough of them."""
        with self._files.changing():
            return self._sign_and_publish(signers)

    def discard(self) -> tuple[str, ...]:
        """Forget what is staged; returns the roles that it would have changed."""
        with self._files.changing():
            roles = self._files.staged_roles()
            for role in roles:
                self._files.unstage(role)
            return tuple(roles)

    def refresh(self, signers: Sequence[PrivateKey]) -> bool | None:
        """The online roles alone: True if signed anew, False if nothing was to do, None without their keys."""
        with self._files.changing():
            return refresh_online(self._files, self._live(), signers, docs.utc(self._clock.wall()))

    # -- inside; whoever calls these holds the lock

    def _change(self, role: str, edit: Edit, signers: Sequence[PrivateKey]) -> Outcome:
        with self._files.changing():
            self._stage(role, edit)
            return self._sign_and_publish(signers)

    def _put_target(
        self,
        role: str,
        path: str,
        data: bytes,
        custom: dict[str, str],
        signers: Sequence[PrivateKey],
        expires: datetime | None = None,
    ) -> Outcome:
        target = TargetFile.from_data(path, data, ["sha256"])
        if custom:
            target.unrecognized_fields["custom"] = custom
        with self._files.changing():
            # Before anything names it; a file that nothing names is harmless.
            self._files.write(target_file(path, target.hashes["sha256"]), data)
            self._stage(role, lambda document: document.signed.targets.update({path: target}), expires)
            return self._sign_and_publish(signers)

    def _stage(self, role: str, edit: Edit, expires: datetime | None = None) -> None:
        live, staged = self._live(), self._staged()
        if role not in TOP_ROLES and docs.delegation(role, {**live, **staged}) is None:
            raise NotFound(f"the catalog knows no role {role}; see: mesh catalog show")
        if role in staged:
            document = staged[role]
        elif role in live:
            document = docs.copy(live[role])
        else:
            document = Metadata((Root if role == ROOT else Targets)(spec_version=docs.SPEC_VERSION))
        edit(document)
        now = docs.utc(self._clock.wall())
        document.signed.version = 1 + (live[role].signed.version if role in live else 0)
        document.signed.expires = expires if expires is not None else now + docs.lifetime(role)
        document.signatures.clear()
        self._files.stage(role, document.to_bytes())

    def _sign_and_publish(self, signers: Sequence[PrivateKey]) -> Outcome:
        live, staged = self._live(), self._staged()
        for role, document in staged.items():
            expected = 1 + (live[role].signed.version if role in live else 0)
            if document.signed.version != expected:
                raise UsageError(
                    f"{self.directory}/staged/{role}.json is version {document.signed.version}, expected {expected}: "
                    "something else was published meanwhile; delete that file and make the change again"
                )
            for key in signers:
                if docs.may_sign(role, key.public, {**live, **staged}, live):
                    docs.sign(document, key)
            self._files.stage(role, document.to_bytes())
        published = []
        ready = docs.publishable(live, staged)
        for role in sorted(ready, key=lambda role: (role == ROOT, role)):  # a new root counts at once: last
            document = staged[role]
            self._files.write(metadata_file(role, document.signed.version), document.to_bytes())
            self._files.unstage(role)
            published.append((role, document.signed.version))
        live, staged = self._live(), self._staged()
        is_signed = True
        if ROOT in live:
            now = docs.utc(self._clock.wall())
            is_signed = refresh_online(self._files, live, signers, now) is not None
        return Outcome(tuple(published), self._missing(live, staged), is_signed)


def _as_it_is(document: Document) -> None:
    """A new version that says the same: later expiry, fresh signatures."""


def _fill_root(root: Root, plan: CatalogPlan) -> None:
    by_role = {ROOT: plan.root, TARGETS: plan.targets, SNAPSHOT: plan.online, TIMESTAMP: plan.online}
    for role, keys in by_role.items():
        root.roles[role] = keys.to_role()
        root.keys.update({key.keyid: key for key in map(tuf_key, keys.keys)})
    root.unrecognized_fields[docs.CATALOG_ID] = plan.catalog_id


def _delegate(targets: Targets, role: str, keys: RoleKeys) -> None:
    if targets.delegations is None:
        targets.delegations = Delegations({}, {})
    roles = targets.delegations.roles
    assert roles is not None
    if role in roles:
        raise UsageError(f"the catalog has {role} already; change its keys with: mesh catalog rotate")
    paths = REVOCATION_PATHS if role == TAKEDOWN else publisher_paths(role.removeprefix("publisher-"))
    roles[role] = DelegatedRole(role, [], keys.threshold, terminating=True, paths=paths)
    for key in keys.keys:
        targets.add_key(tuf_key(key), role)


def _delegated(delegator: Root | Targets, role: str) -> Role:
    try:
        return delegator.get_delegated_role(role)
    except ValueError as exc:
        raise NotFound(f"the catalog knows no role {role}; see: mesh catalog show") from exc
