"""Signed metadata and the one question asked of it: is it signed by enough of those whom its delegator names?

Pure functions over tuf's ``Metadata`` by role name. ``Documents`` may mix what is in force with what is staged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Role, Root, Targets

from mesh.errors import CatalogRefused
from mesh.weights.trust.catalog.keys import KeySigner, own_key, tuf_key
from mesh.weights.trust.catalog.names import ONLINE_ROLES, ROOT, SNAPSHOT, TAKEDOWN, TARGETS, TIMESTAMP
from mesh.weights.trust.signing import PrivateKey, PublicKey

CATALOG_ID = "x-llama-mesh-catalog"  # in every root, so that a node keeps one memory per catalog

Document = Metadata[Any]
Documents = Mapping[str, Document]

SPEC_VERSION = "1.0.31"  # said in every document; not whatever the installed library would say
TOP_ROLES = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
_LIFETIME_DAYS = {ROOT: 365, SNAPSHOT: 2, TIMESTAMP: 2}
_OFFLINE_DAYS = 90  # targets, publishers, takedown


def lifetime(role: str) -> timedelta:
    """How long a signature of this role is good for. Offline roles need a person to renew them."""
    return timedelta(days=_LIFETIME_DAYS.get(role, _OFFLINE_DAYS))


def utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def parse(role: str, data: bytes) -> Document:
    """Raises CatalogRefused; nothing of it is believed yet."""
    try:
        document: Document = Metadata.from_bytes(data)
    except RepositoryError as exc:
        raise CatalogRefused(f"catalog role {role}: not TUF metadata: {exc}") from exc
    expected = role if role in TOP_ROLES else TARGETS
    if document.signed.type != expected:
        raise CatalogRefused(
            f"catalog role {role}: metadata of type {document.signed.type!r}, not {expected!r}"
        )
    return document


def copy(document: Document) -> Document:
    return Metadata.from_bytes(document.to_bytes())


def delegation(role: str, documents: Documents) -> tuple[Root | Targets, Role] | None:
    """Who delegates to ``role``, and to which keys; None if nobody does."""
    delegator = documents.get(ROOT if role in TOP_ROLES else TARGETS)
    if delegator is None:
        return None
    try:
        return delegator.signed, delegator.signed.get_delegated_role(role)
    except ValueError:
        return None


def keys_of(role: str, documents: Documents) -> dict[str, PublicKey]:
    """The keys that may sign for ``role``, by TUF key id."""
    found = delegation(role, documents)
    if found is None:
        return {}
    delegator, named = found
    return {key_id: own_key(delegator.get_key(key_id)) for key_id in named.keyids}


def is_signed(role: str, documents: Documents, previous_root: Document | None = None) -> bool:
    """Whether ``documents[role]`` reaches the threshold of its delegator; a new root that of the previous one, too."""
    document, found = documents.get(role), delegation(role, documents)
    if document is None or found is None:
        return False
    if role == ROOT and previous_root is not None and previous_root.signed.version < document.signed.version:
        result = document.signed.get_root_verification_result(
            previous_root.signed, document.signed_bytes, document.signatures
        )
        return bool(result)
    return bool(found[0].get_verification_result(role, document.signed_bytes, document.signatures))


def signatures_missing(
    role: str, documents: Documents, previous_root: Document | None
) -> tuple[int, list[str]]:
    """How many more signatures a staged document needs, and the fingerprints that could give them."""
    document, found = documents[role], delegation(role, documents)
    if found is None:
        return 1, []
    delegators = [found[0]]
    if role == ROOT and previous_root is not None:
        delegators.append(previous_root.signed)
    results = [
        delegator.get_verification_result(role, document.signed_bytes, document.signatures)
        for delegator in delegators
    ]
    open_keys = {own_key(key).key_id for result in results if not result for key in result.unsigned.values()}
    return max(max(0, result.missing) for result in results), sorted(open_keys)


def sign(document: Document, key: PrivateKey) -> None:
    document.sign(KeySigner(key), append=True)


def may_sign(role: str, key: PublicKey, *sets: Documents) -> bool:
    key_id = tuf_key(key).keyid
    return any(key_id in keys_of(role, documents) for documents in sets)


def publishable(live: Documents, staged: Documents) -> set[str]:
    """Which staged documents can go live together so that everything that is in force stays so.

    Delegators are given up first: what their delegates signed may still hold under the delegator in force.
    """
    ready = set(staged)
    while True:
        documents = {**live, **{role: staged[role] for role in ready}}
        for role in sorted(ready, key=_delegators_first):
            is_ready = is_signed(role, documents, live.get(ROOT))
            if role == ROOT:  # a root whose targets nobody has signed yet would take the catalog down
                is_ready = is_ready and is_signed(TARGETS, documents)
            if not is_ready:
                ready.remove(role)
                break
        else:
            return ready


def meta_file(document_bytes: bytes, version: int) -> MetaFile:
    return MetaFile.from_data(version, document_bytes, ["sha256"])


def delegated_roles(documents: Documents) -> list[str]:
    """Publishers and takedown, in the order in which the targets role names them."""
    targets = documents.get(TARGETS)
    if targets is None or targets.signed.delegations is None:
        return []
    return list(targets.signed.delegations.roles or {})


def offline_roles(documents: Documents) -> list[str]:
    return [role for role in (ROOT, TARGETS, *delegated_roles(documents)) if role not in ONLINE_ROLES]


def catalog_id_of(root: Document) -> str:
    """What tells catalogs apart; one made by other tools is told by its keys."""
    value = root.signed.unrecognized_fields.get(CATALOG_ID)
    if isinstance(value, str) and len(value) == 32 and value.isalnum():
        return value
    return hashlib.sha256("".join(sorted(root.signed.keys)).encode()).hexdigest()[:32]


def _delegators_first(role: str) -> tuple[int, str]:
    return ({ROOT: 0, TARGETS: 1, TAKEDOWN: 2}.get(role, 3), role)


def duplicates(keys: Iterable[PublicKey]) -> bool:
    """One key listed twice would count for one signature where two were meant."""
    raws = [key.raw for key in keys]
    return len(set(raws)) != len(raws)
