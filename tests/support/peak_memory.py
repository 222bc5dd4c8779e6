"""The most memory this process ever held, for scripts that tests run as processes of their own."""

from __future__ import annotations

from pathlib import Path


def peak_rss_bytes() -> int:
    """Since exec. Not ``ru_maxrss``: a child inherits that from the process that forked it."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
