"""Logging for the daemons: one line when something begins or ends, its facts as key=value at the end.

Libraries and modules only call ``logging.getLogger(__name__)``; nothing but a CLI calls ``configure``. Prompts, tensors
and keys never reach a log.
"""

from __future__ import annotations

import logging
import sys

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _KeyValueFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        facts = " ".join(f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD)
        if not facts:
            return line
        first, newline, rest = line.partition("\n")  # keep a traceback below the facts
        return f"{first}  {facts}{newline}{rest}"


def configure(*, verbose: bool, level: int = logging.WARNING) -> None:
    """Log to stderr: our own packages from ``level`` (with ``verbose`` from DEBUG), others from WARNING."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_KeyValueFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in ("mesh", "node", "coordinator"):
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else level)
