"""``mesh verify DIR|RELEASE``: every byte of a release against what its publisher signed, offline; with ``--fleet`` what the
nodes of a mesh hold of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mesh.cli.believing import CatalogOption, believer
from mesh.cli.stores import StoreOption


def verify(
    release: Annotated[
        str | None,
        typer.Argument(
            help="A release's directory, or its name or id in the store; with --fleet at the coordinator, if it serves several.",
            show_default=False,
        ),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also look at tensors, numbers, tokenizer and template.")
    ] = False,
    store: StoreOption = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="What the store does not hold of the release is missing.")
    ] = False,
    trust: Annotated[
        Path | None,
        typer.Option(
            envvar="MESH_TRUST",
            help="The publisher's public key, or with --catalog its root. Default: every key of yours.",
        ),
    ] = None,
    fleet: Annotated[
        bool, typer.Option("--fleet", help="Ask every node of a mesh to prove that it holds its shards now.")
    ] = False,
    coordinator: Annotated[
        str | None, typer.Option(envvar="MESH_COORDINATOR", help="With --fleet: its HOST:PORT.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="MESH_TOKEN", help="With --fleet, or a catalog at HOST:PORT: a join token of it."
        ),
    ] = None,
    leaves: Annotated[
        int, typer.Option(min=1, max=32, help="With --fleet: 16 KiB blocks each node must show.")
    ] = 16,
    report: Annotated[
        Path | None, typer.Option(help="With --fleet: write the evidence here, as JSON.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="With --fleet: sign the report with this key of yours.")
    ] = None,
    catalog: CatalogOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check signature, licence, torrent and every shard of a release, on all cores. Exit code 4 names what was changed."""
    from mesh.errors import UsageError

    here = {"--deep": deep, "--complete": complete}
    there = {"--report": report is not None, "--key": key is not None}
    if out_of_place := [flag for flag, given in (here if fleet else there).items() if given]:
        # What is silently not done would be believed to be done.
        what = "a release on this machine, not for --fleet" if fleet else "--fleet"
        raise UsageError(f"{', '.join(out_of_place)}: only for {what}")
    if fleet:
        if coordinator is None or token is None:
            raise UsageError(
                "--fleet needs --coordinator HOST:PORT and --token; the coordinator printed both"
            )
        from mesh.cli.verify_fleet import FleetQuestion, verify_fleet

        believe = believer(trust, catalog, token)
        question = FleetQuestion(coordinator, token, release or "", believe, leaves, report, key)
        verify_fleet(question, as_json=as_json)
        return
    if release is None:
        raise UsageError(
            "which release? pass its directory, its name in the store, or --fleet to ask the nodes of a mesh"
        )
    from mesh.cli.verify_release import verify_here

    believe = believer(trust, catalog, token)
    verify_here(release, store=store, deep=deep, complete=complete, believe=believe, as_json=as_json)
