"""``mesh gc``: give disk back."""

from __future__ import annotations

from typing import Annotated

import typer

from mesh.cli.stores import JsonOption, StoreOption

SCHEMA = "mesh.gc/1"


def gc(
    store: StoreOption = None,
    quota: Annotated[
        str | None,
        typer.Option(
            help="From now on the store may take this much, e.g. 200GB; `none` for no bound."
            " MESH_STORE_QUOTA overrules it."
        ),
    ] = None,
    free: Annotated[str | None, typer.Option(help="Make this much room under the quota, e.g. 30GB.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove shards that no release names and abandoned downloads; then, over the quota, the least recently used releases.

    A release that is pinned or that a running process uses never goes.
    """
    import json

    from mesh.cli.stores import open_holdings, reclaim_as_json
    from mesh.errors import UsageError
    from mesh.sizes import format_size, parse_size

    holdings = open_holdings(store)
    if quota is not None:
        if dry_run:
            raise UsageError("--quota is remembered, so it does not go with --dry-run")
        holdings.set_quota(None if quota == "none" else parse_size(quota))
    if free is not None and holdings.quota() is None:
        raise UsageError("--free makes room under a quota and this store has none; set one with --quota SIZE")
    names = {held.release_id: held.name for held in holdings.releases()}
    plan = holdings.reclaim(free_bytes=0 if free is None else parse_size(free), dry_run=dry_run)

    if as_json:
        value = reclaim_as_json(
            SCHEMA, plan, dry_run=dry_run, excess_bytes=plan.excess_bytes, quota=holdings.quota()
        )
        typer.echo(json.dumps(value))
        return
    verb = "would remove" if dry_run else "removed"
    for release_id in plan.releases:
        typer.echo(f"{verb} release {names[release_id]} {release_id[:16]}")
    typer.echo(
        f"{verb} {len(plan.roots)} shards and {len(plan.downloads)} downloads, {format_size(plan.num_bytes)}"
    )
    if plan.excess_bytes:
        typer.echo(
            f"still {format_size(plan.excess_bytes)} too much: what is left is pinned or in use", err=True
        )
