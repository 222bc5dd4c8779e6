"""Compiles the native library; imported by the build hook (``hatch_build.py``) and run by hand while working on it.

    python -m mesh.model.native.build

Nothing beyond the standard library, and nothing of ours: at build time the package is not installed yet.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).parent
SOURCES = ("stage.c", "kernels_scalar.c", "kernels_avx2.c", "kernels_avx512.c")
# No contraction and no fast-math: every operation rounds as written, which is what makes all instruction sets agree.
# Nothing names a processor: functions that need one's instructions say so themselves and are chosen at run time.
_FLAGS = ("-O3", "-std=c11", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-pthread")


def library_path() -> Path:
    return _HERE / "libmesh_native.so"


def compile_library() -> str | None:
    """Build the library beside its sources. None if that worked, else one line that says why not."""
    compiler = _compiler()
    if compiler is None:
        return "no C compiler was found"
    unfinished = library_path().with_suffix(".tmp")
    command = [*compiler, *_FLAGS, *(str(_HERE / source) for source in SOURCES), "-o", str(unfinished), "-lm"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if result.returncode:
            lines = result.stderr.strip().splitlines() or [f"{compiler[0]} ended with {result.returncode}"]
            return next((line for line in lines if "error" in line), lines[-1])
        unfinished.replace(library_path())  # a process that has the old one loaded keeps it
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    finally:
        unfinished.unlink(missing_ok=True)
    return None


def _compiler() -> list[str] | None:
    if chosen := os.environ.get("CC"):
        return shlex.split(chosen)
    return next(([name] for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


if __name__ == "__main__":
    reason = compile_library()
    if reason is not None:
        sys.exit(f"the native library was not built: {reason}")
