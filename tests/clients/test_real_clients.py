"""Clients as their users install them, each in an environment of its own, against a coordinator with keys and the real model."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from _pytest.mark import ParameterSet

from mesh.demo.local_mesh import local_mesh
from mesh.demo.processes import command
from mesh.model.native import library
from tests.support.releases import pack

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".clients"
DRIVERS = {
    "openai2": "drive_openai.py",
    "openai3": "drive_openai.py",
    "anthropic": "drive_anthropic.py",
    "litellm": "drive_litellm.py",
    "langchain": "drive_langchain.py",
}
MODEL = "smollm2-135m-instruct"
DRIVER_SECONDS = 120

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.real_model, pytest.mark.timeout(300)]


def is_built(name: str) -> bool:
    built = ENVIRONMENTS / name / ".built"
    return built.exists() and built.read_bytes() == (HERE / f"requirements-{name}.txt").read_bytes()


@dataclass(frozen=True)
class Served:
    url: str
    key: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(real_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    scratch = tmp_path_factory.mktemp("clients")
    packed = pack(real_gguf, scratch / "publisher", name=MODEL)
    async with local_mesh(
        packed.directory,
        packed.trust_file,
        packed.manifest,
        scratch / "mesh",
        num_nodes=1,
        kv_tokens=4096,
        engine="native"
        if library.is_available()
        else "torch",  # whichever is faster: clients are what is tested
    ) as mesh:
        made = await _output(
            command("mesh-coordinator"), "key", "create", "--json", "--data", str(scratch / "mesh" / "coordinator")
        )  # fmt: skip
        yield Served(mesh.url, re.search(r'"key":\s*"([^"]+)"', made)[1])


def clients() -> list[ParameterSet]:
    told = f"its environment is not built; `make test-clients` builds it into {ENVIRONMENTS.name}/"
    return [
        pytest.param(name, marks=pytest.mark.skipif(not is_built(name), reason=told + name))
        for name in DRIVERS
    ]


@pytest.mark.parametrize("name", clients())
async def test_client_works_unmodified(name: str, served: Served) -> None:
    driver = HERE / DRIVERS[name]
    python = ENVIRONMENTS / name / "bin" / "python"
    told = await _output(str(python), str(driver), served.url, served.key, MODEL)
    checks = re.findall(r"^@check\ndef (\w+)", driver.read_text(), re.MULTILINE)
    assert told.split() == checks


async def _output(*arguments: str) -> str:
    # Frameworks would report to their makers, fetch price lists, or go through a proxy.
    environment = {
        name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")
    } | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "NO_PROXY": "*"}
    process = await asyncio.create_subprocess_exec(
        *arguments,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DRIVER_SECONDS):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, f"{out.decode()}\n{err.decode()[-6000:]}"
    return out.decode()
