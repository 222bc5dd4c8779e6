"""``mesh verify --fleet``: who in a mesh holds the licensed bytes now, as a table and as evidence in a file."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path

import typer

from mesh.belief import Believer
from mesh.cli.ls import format_layers
from mesh.clock import SystemClock
from mesh.errors import UsageError
from mesh.fleet import FleetReport, prove_fleet
from mesh.token import JoinToken
from mesh.weights.disk import naming_full_disk
from mesh.weights.trust.keyring import find_key
from mesh.wire.channel import format_endpoint, parse_endpoint


@dataclass(frozen=True, slots=True)
class FleetQuestion:
    """The options of the command, as they were given."""

    coordinator: str
    token: str
    release: str
    believe: Believer
    leaves: int
    report: Path | None
    key: str | None


def verify_fleet(question: FleetQuestion, *, as_json: bool) -> None:
    """Raises IntegrityError if a node failed, LicenseRefused if one has not accepted or the release was revoked,
    Unreachable if one could not be asked."""
    # Whatever is wrong with the command line is said before anybody is asked.
    key = find_key(question.key) if question.key is not None else None
    token = JoinToken.parse(question.token)
    target = format_endpoint(*parse_endpoint(question.coordinator, what="--coordinator"))
    if question.report is not None and not question.report.parent.is_dir():
        raise UsageError(f"--report {question.report}: no directory {question.report.parent}")

    report = asyncio.run(
        prove_fleet(
            target,
            token.secret,
            question.release,
            question.believe,
            num_leaves=question.leaves,
            clock=SystemClock(),
        )
    )
    if question.report is not None:
        _write(question.report, report.signed(key))
    if as_json:
        typer.echo(json.dumps(json.loads(report.signed(key))))
    else:
        typer.echo(describe(report))
        if question.report is not None:
            typer.echo(f"evidence in {question.report}{', signed' if key is not None else ''}")
    if (verdict := report.verdict()) is not None:
        raise verdict


def describe(report: FleetReport) -> str:
    """The report for people: the release and its licence, then a row per node, then what nobody proved."""
    manifest = report.manifest
    lines = [
        f"{manifest.name}, release {manifest.release_id}",
        f"licence {manifest.license.id}, text sha256 {manifest.license.text_digest}",
        *([report.catalog] if report.catalog else []),
        f"revocation {report.revocation_problem or report.revocation or 'not checked: no --catalog given'}",
        f"asked {report.created} through {report.coordinator}",
        "",
    ]
    for proof in report.proofs:
        good = sum(finding.problem is None for finding in proof.findings)
        lines.append(
            f"{proof.state:<11}  {proof.node.name:<20}  layers {proof.node.layers!s:<8}"
            f"  {good}/{len(proof.challenge.leaves)} blocks  {proof.node.node_id}"
        )
        if proof.accepted is not None:
            lines.append(f"{'':<11}  accepted {manifest.license.id} {proof.accepted.accepted}")
        lines += [f"{'':<11}  {problem}" for problem in proof.problems]
    missing = format_layers(report.unproved_layers)
    lines += ["", f"no proof for layers {missing}" if missing else "every layer is proved by a node"]
    return "\n".join(lines)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming_full_disk(path):
            part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
