"""Build hook: compiles the native library (``mesh/model/native``) when the package is installed or a wheel is made.

Never fails an installation: without a compiler the package is pure Python and computes with torch.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_BUILD = Path("mesh", "model", "native", "build.py")


class NativeBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build = _load(Path(self.root, _BUILD))
        reason = build.compile_library()
        if reason is not None:
            self.app.display_warning(f"the native library was not built, torch will compute: {reason}")
            return
        # Git ignores what was built; the wheel needs it. It is tied to a platform and to no Python.
        build_data["artifacts"].append(build.library_path().relative_to(self.root).as_posix())
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"


def _load(path: Path) -> Any:
    """The module by its file: the package it belongs to cannot be imported yet."""
    spec = importlib.util.spec_from_file_location("native_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
