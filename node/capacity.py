"""What this machine can give: memory and disk, as the operating system reports them now."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

_SHARE_OF_FREE_MEMORY = 0.8  # a guest leaves room for the host


def memory_bytes(device: str, limit: int | None) -> int:
    """What one node process may take in all. ``limit`` is the volunteer's own word and wins."""
    if limit is not None:
        return limit
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _SHARE_OF_FREE_MEMORY)
    return int(psutil.virtual_memory().available * _SHARE_OF_FREE_MEMORY)


def disk_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free


def resolve_device(device: str) -> str:
    """``auto`` -> ``cuda:0`` where there is one, else ``cpu``."""
    if device != "auto":
        return device
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"
