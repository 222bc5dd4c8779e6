"""The outer edge of every command: errors become one line on stderr and an exit code.

    def main(argv: list[str] | None = None) -> int:
        return run_app(app, argv, prog="mesh")

Exit codes are those of ``mesh.errors``; 130 and 143 for Ctrl-C and SIGTERM. SIGTERM unwinds the stack as Ctrl-C does,
so that ``finally`` blocks leave nothing half-written. A traceback is shown only with ``-v``.
"""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from mesh import __version__
from mesh.errors import MeshError, NotEnoughDisk, NotFound, UsageError
from mesh.weights.disk import FULL_DISK

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM

# typer keeps click inside since 0.26 and beside it before; the class of a wrong command line is found from either.
_COMMAND_LINE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]


def new_app(prog: str, help_text: str) -> typer.Typer:
    """A command with subcommands, ``--version``, and its errors left to ``run_app``."""
    app = typer.Typer(
        name=prog,
        help=help_text,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback(invoke_without_command=True)
    def root(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
        ] = False,
    ) -> None:
        if version:
            typer.echo(f"{prog} {__version__}")
            raise typer.Exit

    return app


def run_app(app: typer.Typer, argv: list[str] | None, prog: str) -> int:
    """Run a command line; a command may return its exit code. Never raises."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with _termination_as_exit():
            result = typer.main.get_command(app).main(args=args, prog_name=prog, standalone_mode=False)
            sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 1
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stdout = open("/dev/null", "w")  # noqa: PTH123, SIM115 - the interpreter flushes it at exit
        return 1
    except _COMMAND_LINE_ERROR as exc:
        if (
            type(exc).__name__ == "NoArgsIsHelpError"
        ):  # its message is the whole help; typer does not export it
            print(exc.format_message(), file=sys.stderr)  # type: ignore[attr-defined]
            return UsageError.exit_code
        return _report(exc, args, prog)
    # Whatever is left is either said in one line or a mistake of ours, which also ends here and not in a traceback.
    except Exception as exc:
        return _report(exc, args, prog)


def _report(exc: Exception, args: list[str], prog: str) -> int:
    if _is_verbose(args):
        traceback.print_exception(exc)
    error = _as_mesh_error(exc)
    print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
    return error.exit_code


def _as_mesh_error(exc: Exception) -> MeshError:
    if isinstance(exc, MeshError):
        return exc
    if isinstance(exc, _COMMAND_LINE_ERROR):
        context = getattr(exc, "ctx", None)
        advice = f"; see {context.command_path} --help" if context is not None else ""
        return UsageError(f"{exc.format_message().rstrip('.')}{advice}")  # type: ignore[attr-defined]
    if isinstance(exc, OSError):
        where = f"{exc.filename}: " if exc.filename is not None else ""
        text = f"{where}{exc.strerror or exc}"
        if exc.errno in FULL_DISK:
            return NotEnoughDisk(f"{text}; make room or choose another place, then run it again")
        return NotFound(text) if isinstance(exc, FileNotFoundError) else MeshError(text)
    return MeshError(
        f"internal error, {type(exc).__name__}: {exc}; run it again with -v and report what it prints"
    )


def _is_verbose(args: list[str]) -> bool:
    own = args[: args.index("--")] if "--" in args else args
    return "-v" in own or "--verbose" in own


@contextmanager
def _termination_as_exit() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there Python takes signals
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
