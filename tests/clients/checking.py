"""What every driver begins with: where the mesh is, and how a check is told. Runs in the client's own environment.

    python drive_openai.py URL KEY MODEL

A check that fails ends the driver with its traceback; each that holds is a line of stdout.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

URL, KEY, MODEL = sys.argv[1:4] if len(sys.argv) > 3 else ("", "", "")

QUESTION = "Name a colour."
TOO_LONG = "word " * 9000  # more than the model's 8192 tokens
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
_checks: list[Callable[[], None]] = []


def check(run: Callable[[], None]) -> Callable[[], None]:
    _checks.append(run)
    return run


def run_checks() -> None:
    for run in _checks:
        run()
        print(run.__name__, flush=True)


def raised(kind: type[Exception], run: Callable[[], object]) -> Exception:
    """What ``run`` raised, which has to be of that kind."""
    try:
        run()
    except kind as exc:
        return exc
    raise AssertionError(f"expected {kind.__name__}, nothing was raised")
