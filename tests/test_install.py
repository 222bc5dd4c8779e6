"""``.ci/install`` finds a Python that can run us, or says what to install; nothing is made before that."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INSTALL = ROOT / ".ci" / "install"


def interpreter(directory: Path, name: str, *, version: str, has_venv: bool = True) -> None:
    """A stand-in that answers what the script asks: its version, whether it is supported, whether it has venv."""
    minor = int(version.split(".")[1])
    path = directory / name
    path.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *--version*) echo "Python {version}"; exit 0;; '
        f"*version_info*) exit {0 if 11 <= minor <= 13 else 1};; *ensurepip*) exit {0 if has_venv else 1};; esac\n"
        "exit 99\n"
    )
    path.chmod(0o755)


def install(path: Path, target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    tools = path / "tools"  # what the script needs of a system, and no Python among it
    tools.mkdir()
    for tool in ("bash", "tail", "rm", "touch", "sh"):
        found = next(p for p in (Path("/bin") / tool, Path("/usr/bin") / tool) if p.exists())
        (tools / tool).symlink_to(found)
    return subprocess.run(
        [tools / "bash", INSTALL, target, "run"],
        env={"PATH": f"{path}:{tools}", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "venv"


def refused(ran: subprocess.CompletedProcess[str], target: Path, *words: str) -> None:
    assert ran.returncode == 1
    assert len(ran.stderr.strip().splitlines()) == 1, ran.stderr
    for word in words:
        assert word in ran.stderr
    assert not target.exists()


def test_no_python_at_all_says_what_to_install(tmp_path: Path, target: Path) -> None:
    refused(install(tmp_path, target), target, "3.11, 3.12 or 3.13", "apt-get install python3 python3-venv")


@pytest.mark.parametrize("version", ["3.10.12", "3.14.0"])
def test_python_outside_the_range_is_named(tmp_path: Path, target: Path, version: str) -> None:
    interpreter(tmp_path, "python3", version=version)
    refused(install(tmp_path, target), target, f"Python {version}", "3.11, 3.12 or 3.13")


def test_missing_venv_module_says_which_package(tmp_path: Path, target: Path) -> None:
    interpreter(tmp_path, "python3", version="3.12.1", has_venv=False)
    refused(install(tmp_path, target), target, "python3 cannot make virtual environments", "python3-venv")


def test_interpreter_that_was_asked_for_is_not_replaced_by_another(tmp_path: Path, target: Path) -> None:
    interpreter(tmp_path, "python3", version="3.12.1")
    interpreter(tmp_path, "old", version="3.9.1")
    refused(install(tmp_path, target, PYTHON="old"), target, "PYTHON=old", "Python 3.9.1")


def test_supported_python_beside_an_unsupported_one_is_found(tmp_path: Path, target: Path) -> None:
    interpreter(tmp_path, "python3", version="3.14.0")
    interpreter(tmp_path, "python3.12", version="3.12.1", has_venv=False)
    refused(install(tmp_path, target), target, "python3.12 cannot make virtual environments")
