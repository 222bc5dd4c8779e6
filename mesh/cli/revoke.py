"""``mesh revoke``: take back shards, releases, keys or licences, for every mesh that follows a catalog."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mesh.weights.trust.catalog.client import CatalogRelease
    from mesh.weights.trust.catalog.repository import Catalog
    from mesh.weights.trust.revocation import Kind, RevocationList

SCHEMA = "mesh.revoke/1"

Ids = list[str] | None


def revoke(
    catalog: Annotated[Path, typer.Option(help="The catalog's directory.")],
    release: Annotated[Ids, typer.Option(help="Id of a release; may be repeated, as all of these.")] = None,
    shard: Annotated[Ids, typer.Option(help="Root of a shard, whatever release it is in.")] = None,
    key: Annotated[Ids, typer.Option(help="Fingerprint of a publisher's key: all that it signed.")] = None,
    license_: Annotated[
        Ids, typer.Option("--license", help="Id of a licence, or the SHA-256 of its text.")
    ] = None,
    infohash: Annotated[Ids, typer.Option(help="Infohash of a release's torrent.")] = None,
    reason: Annotated[
        str, typer.Option(help="dmca, key_compromise, defective or license_withdrawn.")
    ] = "defective",
    action: Annotated[
        str, typer.Option(help="stop_serving, or delete: nodes also delete the bytes.")
    ] = "stop_serving",
    case: Annotated[str, typer.Option(help="What lets people find out why: a ticket, a notice.")] = "",
    effective: Annotated[
        str | None, typer.Option(help="From when on, e.g. 2026-01-02T03:04:05Z. Default: now.")
    ] = None,
    lift: Annotated[bool, typer.Option("--lift", help="Take the revocation of these back.")] = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="The same list for another seven days; do it before it expires.")
    ] = False,
    sign_with: Annotated[
        Ids, typer.Option(help="Sign with this key, a file or a name. Default: all you keep.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Change the revocation list and sign it; without anything to change, show it and what it forbids."""
    import time

    from mesh.errors import Temporary, UsageError
    from mesh.weights.trust.catalog.repository import Catalog
    from mesh.weights.trust.keyring import signing_keys
    from mesh.weights.trust.revocation import Kind

    given = {
        Kind.RELEASE: release,
        Kind.SHARD: shard,
        Kind.KEY: key,
        Kind.LICENSE: license_,
        Kind.INFOHASH: infohash,
    }
    targets = [(kind, id_) for kind, ids in given.items() for id_ in ids or ()]
    if (lift and not targets) or (refresh and targets):
        raise UsageError("--lift needs what to lift, e.g. --release ID; --refresh changes nothing else")
    opened, now = Catalog.open(catalog), time.time()
    before = _published(opened)
    if not targets and not refresh:
        _tell(before, _listed(opened), as_json)
        return
    after = _changed(before, targets, reason, action, case, effective, lift=lift, now=now)
    outcome = opened.set_revocations(after.to_bytes(), after.expires_at, list(signing_keys(sign_with or ())))
    _tell(after, _listed(opened), as_json)
    if outcome.missing:
        raise Temporary(
            f"revocation list {after.version} is staged and binds nobody yet: the takedown role's signature is missing; "
            f"sign it with: mesh catalog sign {catalog} --key KEY"
        )
    if not outcome.is_online_signed:
        typer.echo(
            "snapshot and timestamp still have to be signed: a coordinator that runs with this catalog does it,"
            f" or mesh catalog refresh {catalog}",
            err=True,
        )


def _published(catalog: Catalog) -> RevocationList | None:
    """The newest list that was signed; read from the directory, whether or not it has expired."""
    from mesh.errors import NotFound, UsageError
    from mesh.weights.trust.catalog.names import REVOCATIONS, TAKEDOWN
    from mesh.weights.trust.revocation import RevocationList

    if any(missing.role == TAKEDOWN for missing in catalog.status().missing):
        raise UsageError(
            f"a change of the takedown role waits for signatures: mesh catalog sign {catalog.directory} --key KEY, "
            f"or mesh catalog discard {catalog.directory}"
        )
    try:
        return RevocationList.parse(catalog.target(REVOCATIONS))
    except NotFound:
        return None


def _changed(
    before: RevocationList | None,
    targets: list[tuple[Kind, str]],
    reason: str,
    action: str,
    case: str,
    effective: str | None,
    *,
    lift: bool,
    now: float,
) -> RevocationList:
    from mesh.errors import ManifestInvalid, NotFound, UsageError
    from mesh.weights.trust.revocation import Action, Reason, Revocation, RevocationList, timestamp

    try:
        if lift:
            if before is None:
                raise NotFound("nothing is revoked in this catalog")
            return before.lifting(targets, now)
        entries = [
            Revocation(kind, id_, Reason(reason), effective or timestamp(now), Action(action), case)
            for kind, id_ in targets
        ]
        return (
            RevocationList.first(now).adding(entries, now) if before is None else before.adding(entries, now)
        )
    except (ManifestInvalid, ValueError) as exc:  # of what was typed, not of what was signed
        raise UsageError(str(exc)) from exc


def _listed(catalog: Catalog) -> list[CatalogRelease]:
    """The releases as nodes see them, to say what is hit; none where the catalog cannot be read so now."""
    import tempfile

    from mesh.errors import MeshError
    from mesh.weights.trust.catalog.client import CatalogClient
    from mesh.weights.trust.catalog.sources import directory_source

    with tempfile.TemporaryDirectory(prefix="mesh-revoke-") as scratch:
        try:
            source = directory_source(catalog.directory)
            return CatalogClient(Path(scratch), catalog.root(1), source).refresh().releases()
        except MeshError as exc:
            typer.echo(f"what it hits is not known: {exc}", err=True)
            return []


def _tell(current: RevocationList | None, listed: list[CatalogRelease], as_json: bool) -> None:
    import json
    import time

    if current is None:
        typer.echo(
            json.dumps({"schema": SCHEMA, "version": 0, "expires": None, "entries": [], "hits": []})
            if as_json
            else "nothing was ever revoked in this catalog"
        )
        return
    hits = [
        {
            "release": found.path,
            "release_id": found.manifest.release_id,
            "by": str(hit.revocation),
            "shards": [ref.file for ref in hit.shards],
        }
        for found in listed
        for hit in current.hits(found.manifest, found.signer, found.manifest.shards, time.time())
    ]
    if as_json:
        entries = json.loads(current.to_bytes())["entries"]
        value = {"schema": SCHEMA, "version": current.version, "expires": current.expires}
        typer.echo(json.dumps({**value, "entries": entries, "hits": hits}))
        return
    typer.echo(f"revocation list {current.version}, good until {current.expires}")
    for entry in current.entries:
        typer.echo(f"  {entry}, {entry.action} from {entry.effective}")
    for row in hits:
        typer.echo(f"hits {row['release']}: {len(row['shards'])} shards, by {row['by']}")
    if not hits:
        typer.echo("hits no release that this catalog lists")
