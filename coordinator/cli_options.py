"""What the ``mesh-coordinator`` commands share: options, and how times are read and shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Data = Annotated[
    Path | None,
    typer.Option(
        envvar="MESH_COORDINATOR_DATA",
        help="Where tokens, keys, nodes and the audit trail are kept; one coordinator each.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def data_directory(data: Path | None) -> Path:
    from mesh.dirs import data_dir

    return data if data is not None else data_dir() / "coordinator"


def existing_directory(data: Path | None) -> Path:
    """The data directory of a coordinator that has run; a question must not make one."""
    from coordinator.data_directory import read_listening

    directory = data_directory(data)
    read_listening(directory)
    return directory


def seconds_of(ttl: str) -> float:
    """``"24h"`` -> 86400. Raises UsageError."""
    from mesh.errors import UsageError

    match = re.fullmatch(r"(\d{1,9})([smhd])", ttl)
    if match is None or int(match[1]) == 0:
        raise UsageError(f"--ttl {ttl!r}: expected a number and a unit, for example 30m, 24h or 30d")
    return int(match[1]) * _UNIT_SECONDS[match[2]]


def when(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
