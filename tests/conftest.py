"""Fixtures that more than one package's tests need."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from mesh.demo.demo_model import demo_model_path

# A busy machine is no failure of a property; tests as a whole have their own time limit.
hypothesis.settings.register_profile("mesh", deadline=None)
hypothesis.settings.load_profile("mesh")

# A shell that starts the suite in the background has it ignore Ctrl-C, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """The real SmolLM2-135M-Instruct, fetched once into the user's cache."""
    return demo_model_path()


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command run inside a test configures logging; the next test must not inherit that."""
    root = logging.getLogger()
    packages = [logging.getLogger(name) for name in ("mesh", "node", "coordinator")]
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for package in packages:
        package.setLevel(logging.NOTSET)
