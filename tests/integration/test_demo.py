"""``mesh demo``, as a newcomer runs it; and as one who changes their mind: Ctrl-C leaves no process and no file."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from mesh.demo.processes import command
from tests.support.tiny_models import write_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model"), tied=True)


async def start_demo(checkpoint: Path, cache: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        command("mesh"), "demo", "--model", str(checkpoint), "--nodes", "3", "--max-tokens", "160", "--kv-tokens", "1024",
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # the signal of the test reaches the demo alone, as make passes it on
    )  # fmt: skip


def processes_naming(path: Path) -> list[str]:
    """Command lines of running processes that speak of ``path``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended while we looked
            continue
        if str(path) in line:
            found.append(line)
    return found


async def test_demo_runs_any_supported_model_and_proves_the_answer(checkpoint: Path, tmp_path: Path) -> None:
    process = await start_demo(checkpoint, tmp_path)
    out, _ = await process.communicate()
    text = out.decode()
    assert process.returncode == 0, text
    assert "0:" in text
    assert "→" in text
    assert "equal" in text
    assert "tokens/s" in text
    assert "node-b killed" in text
    assert "although node-b was killed, the longest pause was" in text
    assert processes_naming(tmp_path) == []
    assert list((tmp_path / "llama-mesh").iterdir()) == []


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("packed", signal.SIGINT),  # while processes are being started
        ("node-a", signal.SIGTERM),  # while the answer is being made
        ("answer", signal.SIGINT),  # while the mesh is being stopped
        ("speed", signal.SIGTERM),  # while one process makes the same answer
    ],
)
async def test_signal_at_any_moment_leaves_no_process_and_no_file(
    checkpoint: Path, tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    process = await start_demo(checkpoint, tmp_path)
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while moment.encode() not in (line := await process.stdout.readline()):
            assert line, "the demo ended before the moment came"
        process.send_signal(number)
        rest, _ = await process.communicate()
    assert process.returncode == 128 + number, rest.decode()
    assert "Traceback" not in rest.decode()
    assert processes_naming(tmp_path) == []
    assert list((tmp_path / "llama-mesh").iterdir()) == []
