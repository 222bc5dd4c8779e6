"""Fixtures that more than one package's tests need."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.demo.demo_model import demo_model_path


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """The real SmolLM2-135M-Instruct, fetched once into the user's cache."""
    return demo_model_path()
