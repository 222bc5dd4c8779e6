"""``mesh ls``: what this machine keeps of which release."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from mesh.cli.stores import JsonOption, StoreOption

if TYPE_CHECKING:
    from mesh.weights.releases.holdings import HeldRelease

SCHEMA = "mesh.ls/1"


def ls(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List releases: layers held, bytes, how many of them other releases share, pins and last use."""
    import json

    from mesh.cli.stores import open_holdings

    holdings = open_holdings(store)
    releases = holdings.releases()
    shared = shared_bytes(releases)
    if as_json:
        value = {
            "schema": SCHEMA,
            "store": str(holdings.store.directory),
            "bytes": holdings.used_bytes(),
            "quota": holdings.quota(),
            "releases": [_as_json(held, shared[held.release_id]) for held in releases],
        }
        typer.echo(json.dumps(value))
        return
    for line in _table(releases, shared):
        typer.echo(line)
    typer.echo(_summary(len(releases), holdings.used_bytes(), holdings.quota()))


def shared_bytes(releases: Sequence[HeldRelease]) -> dict[str, int]:
    """By release id: bytes of its held shards that another release names, too."""
    named = Counter(
        root
        for held in releases
        if held.manifest is not None
        for root in {ref.root for ref in held.manifest.shards}
    )
    return {
        held.release_id: sum(size for root, size in _blobs(held).items() if named[root] > 1)
        for held in releases
    }


def format_layers(layers: Sequence[int]) -> str:
    """``[0, 1, 2, 7]`` -> ``"0:3 7:8"``: half-open ranges, as everywhere."""
    spans: list[list[int]] = []
    for layer in sorted(layers):
        if spans and spans[-1][1] == layer:
            spans[-1][1] = layer + 1
        else:
            spans.append([layer, layer + 1])
    return " ".join(f"{start}:{stop}" for start, stop in spans)


def _blobs(held: HeldRelease) -> dict[str, int]:
    return {ref.root: ref.size for ref in held.held}


def _layers(held: HeldRelease) -> list[int]:
    return sorted(ref.layer for ref in held.held if ref.layer is not None)


def _as_json(held: HeldRelease, shared: int) -> dict[str, Any]:
    manifest = held.manifest
    return {
        "release_id": held.release_id,
        "name": held.name,
        "damaged": manifest is None,
        "layers": format_layers(_layers(held)),
        "num_layers": manifest.model.num_layers if manifest is not None and manifest.model else 0,
        "shards_held": sorted(ref.file for ref in held.held),
        "num_shards": len(manifest.shards) if manifest is not None else 0,
        "bytes": sum(_blobs(held).values()),
        "total_bytes": manifest.total_bytes if manifest is not None else 0,
        "shared_bytes": shared,
        "license": manifest.license.id if manifest is not None else None,
        "pinned": held.is_pinned,
        "in_use": held.is_busy,
        "last_used": held.last_used,
    }


def _table(releases: Sequence[HeldRelease], shared: dict[str, int]) -> list[str]:
    from datetime import UTC, datetime

    from mesh.sizes import format_size

    if not releases:
        return []
    rows = [("RELEASE", "ID", "HELD", "BYTES", "SHARED", "LAST USED", "")]
    for held in releases:
        total = len(held.manifest.shards) if held.manifest is not None else 0
        layers = format_layers(_layers(held))
        what = "whole" if total and len(held.held) == total else f"{len(held.held)} of {total} shards"
        if layers and what != "whole":
            what += f", layers {layers}"
        marks = [mark for mark, on in (("pinned", held.is_pinned), ("in use", held.is_busy)) if on]
        used = (
            datetime.fromtimestamp(held.last_used, UTC).strftime("%Y-%m-%d %H:%MZ") if held.last_used else "-"
        )
        rows.append(
            (
                held.name,
                held.release_id[:16],
                what,
                format_size(sum(_blobs(held).values())),
                format_size(shared[held.release_id]),
                used,
                " ".join(marks),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _summary(num_releases: int, used: int, quota: int | None) -> str:
    from mesh.sizes import format_size

    bound = f" of a quota of {format_size(quota)}" if quota is not None else ""
    return f"{num_releases} release{'' if num_releases == 1 else 's'}, {format_size(used)}{bound}"
