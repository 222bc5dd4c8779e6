"""Which engine computes a stage: the native library where it can, torch everywhere else.

    choice = choose_engine("auto", "cpu")
    choice.name, choice.kernel_id      # "native", "native-avx2-1"

``auto`` looks at device and library now; a stage whose tensors the library does not know is found out only once its
shards are there, and then computed with torch (``loader.py``). Whoever compares results asks for the same engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mesh.architecture import LlamaConfig
from mesh.errors import UsageError
from mesh.model import llama
from mesh.model.kv_cache import KvCache
from mesh.model.llama import StageStep
from mesh.model.native import library

ENGINES = ("auto", "native", "torch")


class LoadedStage(Protocol):
    """What every engine makes of a layer range."""

    @property
    def config(self) -> LlamaConfig: ...

    @property
    def device(self) -> str: ...

    @property
    def kernel_id(self) -> str: ...

    def new_cache(self, max_tokens: int) -> KvCache: ...

    def run(self, steps: Sequence[StageStep]) -> list[Tensor]: ...

    def logits(self, rows: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class EngineChoice:
    name: str  # native or torch
    kernel_id: str
    why_not_native: str | None = None  # said only where somebody may want to change it


def choose_engine(wanted: str, device: str) -> EngineChoice:
    """Raises UsageError for an engine that does not exist, or native where it cannot run."""
    if wanted not in ENGINES:
        raise UsageError(f"engine {wanted[:40]!r}: expected {', '.join(ENGINES)}")
    missing = (
        None
        if library.is_available()
        else "the native library was not built; install a C compiler and reinstall"
    )
    if wanted == "native" and device != "cpu":
        raise UsageError(f"engine native computes on the CPU, not on {device}; pass --device cpu")
    if wanted == "native" and missing:
        raise UsageError(f"engine native: {missing}, or use torch")
    if wanted == "torch" or device != "cpu":
        return EngineChoice("torch", llama.kernel_id(device))
    if missing:
        return EngineChoice("torch", llama.kernel_id(device), missing)
    return EngineChoice("native", library.kernel_id())
