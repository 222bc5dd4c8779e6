"""``mesh publish SOURCE``: pack, sign, list in the catalog, seed. Composes the commands of those names, with their options."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from mesh.cli.catalog import add
from mesh.cli.pack import pack
from mesh.cli.seed import seed


def publish(
    catalog: Annotated[Path, typer.Option(envvar="MESH_CATALOG", help="The catalog that shall list it.")],
    publisher_id: Annotated[str, typer.Option("--publisher", help="In whose name.")],
    catalog_key: Annotated[
        list[str] | None,
        typer.Option(help="Sign the catalog with this key; may be repeated. Default: all you keep."),
    ] = None,
    no_seed: Annotated[bool, typer.Option("--no-seed", help="Stop once it is listed.")] = False,
    **options: Any,
) -> int | None:
    """Turn a checkpoint into a signed release, list it in a catalog, and offer it to the swarm until Ctrl-C."""
    from mesh.weights.trust.catalog.repository import Catalog

    as_json, out = bool(options["as_json"]), options["out"]
    Catalog.open(catalog).publisher_trust(publisher_id)  # before hours of packing, not after
    pack(**{name: options[name] for name in inspect.signature(pack).parameters})
    add(catalog, out, publisher_id, catalog_key, as_json)
    if no_seed:
        return None
    seeding = {name: options[name] for name in _seed_options()}
    return seed(out, json_events=as_json, **seeding)


def _seed_options() -> dict[str, inspect.Parameter]:
    """Those of `mesh seed` that are not already said: where release and catalog are, and how to speak."""
    parameters = inspect.signature(seed, eval_str=True).parameters
    return {
        name: each for name, each in parameters.items() if name not in ("directory", "catalog", "json_events")
    }


def _signature() -> inspect.Signature:
    """Every option of pack and of seed, so that publish never knows fewer than they do."""
    own = [
        each
        for each in inspect.signature(publish, eval_str=True).parameters.values()
        if each.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    packing = inspect.signature(pack, eval_str=True).parameters
    merged = {**packing, **{each.name: each for each in own}, **_seed_options()}
    return inspect.Signature(
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in merged.values()],
        return_annotation=int | None,
    )


publish.__signature__ = _signature()  # type: ignore[attr-defined]
