"""How ``mesh catalog`` tells what a change led to, and what a catalog is."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from mesh.weights.trust.catalog.plan import CatalogStatus, Missing, Outcome, RoleStatus
    from mesh.weights.trust.catalog.repository import Catalog

OUTCOME_SCHEMA = "mesh.catalog.change/1"
STATUS_SCHEMA = "mesh.catalog/1"


def tell_outcome(catalog: Catalog, outcome: Outcome, as_json: bool) -> None:
    if as_json:
        value = {
            "schema": OUTCOME_SCHEMA,
            "directory": str(catalog.directory),
            "version": catalog.version,
            "published": [{"role": role, "version": version} for role, version in outcome.published],
            "missing": [_missing_json(missing) for missing in outcome.missing],
            "online_signed": outcome.is_online_signed,
        }
        typer.echo(json.dumps(value))
        return
    published = ", ".join(f"{role} {version}" for role, version in outcome.published)
    if published:
        typer.echo(f"published  {published}")
    for missing in outcome.missing:
        typer.echo(_missing_line(missing))
    if outcome.missing:
        typer.echo(f"           each of them runs: mesh catalog sign {catalog.directory} --key KEY")
    if not outcome.is_online_signed:
        typer.echo(
            "online     snapshot and timestamp still have to be signed: a coordinator that runs with this catalog does it,"
            f" or mesh catalog refresh {catalog.directory}"
        )
    if not outcome.missing and outcome.is_online_signed:
        typer.echo(f"current    version {catalog.version}")


def tell_status(catalog: Catalog, as_json: bool) -> None:
    status = catalog.status()
    if as_json:
        typer.echo(json.dumps(_status_json(catalog, status)))
        return
    typer.echo(f"catalog {status.catalog_id}, version {catalog.version}")
    typer.echo(f"root    {status.root_digest or 'not signed yet'}")
    typer.echo("")
    now, widest = time.time(), max(len(row.role) for row in status.roles)
    typer.echo(f"{'role':<{widest}}  version  signatures  expires in  state")
    for row in status.roles:
        typer.echo(
            f"{row.role:<{widest}}  {row.version or '-':>7}  {f'{row.threshold} of {len(row.keys)}':<10}"
            f"  {_time_left(row, now):>10}  {_state(row, now)}"
        )
        for key in row.keys:
            typer.echo(f"{'':<{widest}}  {key}")
    releases = sorted(path for row in status.roles for path in row.targets)
    typer.echo("" if releases else "\nnothing is published yet")
    for path in releases:
        typer.echo(path)
    for missing in status.missing:
        typer.echo(_missing_line(missing))


def _missing_line(missing: Missing) -> str:
    count = f"{missing.signatures} more signature{'' if missing.signatures == 1 else 's'}"
    what = f"{count} of {', '.join(missing.keys)}" if missing.keys else "what it depends on"
    return f"waiting    {missing.role} {missing.version}: for {what}"


def _missing_json(missing: Missing) -> dict[str, Any]:
    return {
        "role": missing.role,
        "version": missing.version,
        "signatures": missing.signatures,
        "keys": list(missing.keys),
    }


def _status_json(catalog: Catalog, status: CatalogStatus) -> dict[str, Any]:
    return {
        "schema": STATUS_SCHEMA,
        "directory": str(catalog.directory),
        "catalog_id": status.catalog_id,
        "version": catalog.version,
        "root_digest": status.root_digest,
        "roles": [
            {
                "role": row.role,
                "version": row.version,
                "threshold": row.threshold,
                "keys": list(row.keys),
                "expires": row.expires.timestamp() if row.expires is not None else None,
                "in_force": row.is_in_force,
                "targets": list(row.targets),
            }
            for row in status.roles
        ],
        "missing": [_missing_json(missing) for missing in status.missing],
    }


def _state(row: RoleStatus, now: float) -> str:
    if not row.version:
        return "nothing published"
    if not row.is_in_force:
        return "not signed by enough of these keys"
    if row.expires is not None and row.expires.timestamp() <= now:
        return "expired"
    return "in force"


def _time_left(row: RoleStatus, now: float) -> str:
    if row.expires is None:
        return "-"
    left = row.expires.timestamp() - now
    if left <= 0:
        return "expired"
    return f"{left / 86400:.0f} days" if left >= 2.5 * 86400 else f"{left / 3600:.0f} h"
