"""Ask a person something while everything else goes on: Ctrl-C at the question ends the program as it does elsewhere.

``input`` in a thread would not: nothing can end a thread that waits for a line.
"""

from __future__ import annotations

import asyncio
import sys


async def ask(question: str) -> str:
    """The line that was typed, without its end; empty at the end of input. For a terminal only."""
    assert sys.stdin.isatty(), "nobody is there to answer"
    sys.stderr.write(question)
    sys.stderr.flush()
    loop, typed = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, typed.set)  # a terminal is readable once a whole line was typed
    try:
        await typed.wait()
    except asyncio.CancelledError:
        sys.stderr.write("\n")  # what is said next begins a line of its own
        raise
    finally:
        loop.remove_reader(sys.stdin)
    return sys.stdin.readline().strip()
