"""The committed protobuf code is what protoc makes of ``proto/`` today; edit the .proto and run ``make proto``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "mesh" / "wire"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("proto")
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", f"--python_out={out}", f"--pyi_out={out}",
         f"--grpc_python_out={out}", *map(str, sorted(Path("proto/mesh/wire").glob("*.proto")))],
        cwd=ROOT,
        check=True,
    )  # fmt: skip
    (out / "mesh" / "wire" / "common_pb2_grpc.py").unlink()  # no service in it
    return out / "mesh" / "wire"


def fresh_sources() -> list[str]:
    return sorted(f"{path.stem}_pb2{end}" for path in (ROOT / "proto/mesh/wire").glob("*.proto") for end in (".py", ".pyi", "_grpc.py"))  # fmt: skip


@pytest.mark.parametrize("name", [name for name in fresh_sources() if name != "common_pb2_grpc.py"])
def test_committed_file_equals_a_fresh_run(fresh: Path, name: str) -> None:
    assert (COMMITTED / name).read_text() == (fresh / name).read_text()


def test_nothing_else_is_committed_as_generated(fresh: Path) -> None:
    assert {path.name for path in COMMITTED.glob("*_pb2*")} == {path.name for path in fresh.iterdir()}
