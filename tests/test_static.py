"""What the tools hold: formatting, lint, types, import directions, and how light the commands start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports"]],
    ids=["lint", "format", "types", "imports"],
)
def test_tool_finds_nothing(command: list[str]) -> None:
    tool = BIN / command[0]
    assert tool.exists(), f"{command[0]} is not installed; `make test` installs it"
    ran = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("entry", ["mesh.cli.main", "node.cli", "coordinator.cli"])
def test_help_loads_none_of_the_heavy_libraries(entry: str) -> None:
    """A guard that does not depend on the machine's speed: ``--help`` in milliseconds follows from it."""
    code = (
        f"import sys; from {entry} import main; main(['--help']); "
        "heavy = {'torch', 'libtorrent', 'grpc', 'gguf', 'fastapi', 'sqlalchemy', 'numpy', 'tokenizers'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "Usage" in ran.stdout
