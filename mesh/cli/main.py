"""The ``mesh`` command. A command's module is imported when it is called, so ``mesh --help`` costs nothing."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mesh import __version__
from mesh.cli.run_cli import run_app

# name, what --help says; the module mesh.cli.NAME holds a function (or a typer app) of that name
COMMANDS = {
    "keys": "Make and list the keys that sign releases.",
    "pack": "Turn a checkpoint into a signed release of shards.",
    "digest": "Say what a release made of a checkpoint records as its source.",
    "publish": "Pack, sign, list in the catalog and seed, in one go.",
    "catalog": "Say who may publish what, and what is current.",
    "show": "Say what a release is and who signed it.",
    "verify": "Check every byte of a release, offline.",
    "license": "Read, accept and list the licences of releases.",
    "revoke": "Take back releases, shards, keys or licences.",
    "seed": "Offer a release to the swarm.",
    "pull": "Fetch a release from peers and web seeds.",
    "ls": "List the releases that this machine keeps.",
    "rm": "Forget a release and the shards only it names.",
    "gc": "Give disk back: what no release names, then what exceeds the quota.",
    "pin": "Keep a release whatever the quota says.",
    "unpin": "Let a release go when the quota asks for it.",
    "run": "Ask a running mesh and stream the answer.",
    "demo": "Show the whole mesh on this machine.",
}


class LazyGroup(TyperGroup):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        found = getattr(import_module(f"mesh.cli.{cmd_name}"), cmd_name)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(add_completion=False, rich_markup_mode=None)
            single.command(cmd_name)(found)
            found = single
        command = typer.main.get_command(found)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # The inherited one would import every command to suggest a near name.
        name = args[0]
        if (command := self.get_command(ctx, name)) is None:
            ctx.fail(f"no command {name!r}; there are {', '.join(COMMANDS)}")
        return name, command, args[1:]


app = typer.Typer(
    name="mesh",
    help="Run LLaMA-family models that no single machine can hold.",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what happens, and tracebacks. Also after a command.")
    ] = False,
) -> None:
    if version:
        typer.echo(f"mesh {__version__}")
        raise typer.Exit
    from mesh.log import configure

    configure(verbose=verbose)


def main(argv: list[str] | None = None) -> int:
    return run_app(app, _verbose_first(sys.argv[1:] if argv is None else argv), prog="mesh")


def _verbose_first(args: list[str]) -> list[str]:
    """``mesh pack -v …`` means ``mesh -v pack …``: people add it at the end when something went wrong."""
    end = args.index("--") if "--" in args else len(args)
    flags = [arg for arg in args[:end] if arg in ("-v", "--verbose")]
    return [*flags, *(arg for arg in args[:end] if arg not in flags), *args[end:]]
