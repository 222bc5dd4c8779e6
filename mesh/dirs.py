"""Where this project keeps its files, by the conventions of the user's system (XDG on Linux)."""

from __future__ import annotations

from pathlib import Path

import platformdirs

_APP = "llama-mesh"


def data_dir() -> Path:
    """Keys, node stores, coordinator state: what must survive."""
    return Path(platformdirs.user_data_dir(_APP))


def cache_dir() -> Path:
    """What can be fetched or made again."""
    return Path(platformdirs.user_cache_dir(_APP))


def keys_dir() -> Path:
    return data_dir() / "keys"


def store_dir() -> Path:
    """Releases that the user pulled; a node keeps a store of its own."""
    return data_dir() / "store"
