"""The documents say what is there: command lines parse, links lead somewhere, tables agree with the code.

Commands are parsed by the real command objects and never run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import coordinator.cli
import mesh.cli.main
import node.cli
from mesh.errors import MeshError

ROOT = Path(__file__).parent.parent
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS: dict[str, Any] = {
    "mesh": typer.main.get_command(mesh.cli.main.app),
    "mesh-node": typer.main.get_command(node.cli.app),
    "mesh-coordinator": typer.main.get_command(coordinator.cli.app),
}
# typer keeps click inside since 0.26 and beside it before; its error is found from either.
COMMAND_LINE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
SIGNAL_CODES = {130, 143}  # SIGINT and SIGTERM: no error of ours

_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")
_OPERATORS = {"|", "||", "&&", ";", "&", ">", "2>"}


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable set on this machine would stand in for an option that a document forgot."""
    for variable in environment_variables():
        monkeypatch.delenv(variable, raising=False)


# -- what the documents say


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The language and the content of every fenced block."""
    return ((match[1], match[2]) for match in _FENCED.finditer(text))


def commands_in(script: str) -> Iterator[list[str]]:
    """The words of every command of ours in a shell script, one list for each part of a pipeline."""
    for line in script.replace("\\\n", " ").splitlines():
        if not any(command in line for command in COMMANDS):
            continue
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), ";"]:
            if word not in _OPERATORS:
                words.append(word)
                continue
            while words and _ASSIGNMENT.fullmatch(words[0]):
                del words[0]
            if words and words[0] in COMMANDS:
                yield words
            words = []


def command_lines() -> Iterator[Any]:
    for path in GUIDES:
        for language, content in blocks(path.read_text()):
            for words in commands_in(content) if language in ("sh", "") else ():
                yield pytest.param(words, id=f"{name_of(path)}: {shlex.join(words)}")


def mentions() -> Iterator[Any]:
    """Commands and options that running text names: `mesh seed`, `mesh-node join --listen`, `--memory`."""
    for path in GUIDES:
        for span in dict.fromkeys(_SPAN.findall(_FENCED.sub("", path.read_text()))):
            words = span.split()
            if words[0] in COMMANDS or words[0].startswith("--"):
                yield pytest.param(words, id=f"{name_of(path)}: {span}")


# -- what is there


def leaves(command: Any) -> Iterator[Any]:
    """Every command that does something, below ``command``."""
    if not hasattr(command, "list_commands"):
        yield command
        return
    context = typer.Context(command)
    for name in command.list_commands(context):
        yield from leaves(command.get_command(context, name))


def options_of(command: Any) -> set[str]:
    return {"--help", *(opt for param in command.params for opt in (*param.opts, *param.secondary_opts))}


def environment_variables() -> set[str]:
    found = (param.envvar for top in COMMANDS.values() for leaf in leaves(top) for param in leaf.params)
    return {variable for variable in found if variable}


def errors(root: type[MeshError] = MeshError) -> Iterator[type[MeshError]]:
    yield root
    for kind in root.__subclasses__():
        yield from errors(kind)


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command that ``words`` name and what is left of them. Raises what the command line would."""
    command, rest = COMMANDS[words[0]], words[1:]
    while hasattr(command, "resolve_command") and rest and not rest[0].startswith("-"):
        _, command, rest = command.resolve_command(typer.Context(command, info_name=words[0]), rest)
    return command, rest


def parse(words: list[str]) -> None:
    """Raises for a command, option or value that does not exist, and for one that is missing."""
    command, rest = resolve(words)
    command.make_context(shlex.join(words), list(rest)).close()


def check_mention(words: list[str]) -> None:
    """Raises for a command or an option that does not exist; a mention need not be complete."""
    if words[0].startswith("--"):
        known = set().union(*(options_of(leaf) for top in COMMANDS.values() for leaf in leaves(top)))
        rest = words[:1]
    else:
        command, rest = resolve(words)
        known = options_of(command)
    for word in rest:
        if word.startswith("-") and len(word) > 1 and word.partition("=")[0] not in known:
            raise LookupError(f"no option {word} in {' '.join(words)}")


# -- and that both agree


@pytest.mark.parametrize("words", [*command_lines()])
def test_command_line_parses(words: list[str]) -> None:
    parse(words)


@pytest.mark.parametrize("words", [*mentions()])
def test_command_named_in_passing_exists(words: list[str]) -> None:
    check_mention(words)


@pytest.mark.parametrize(
    "line",
    [
        "mesh verfy release",
        "mesh keys make me",
        "mesh verify release --depth",
        "mesh pack model.gguf --out release",
        "mesh run",
        "mesh run hello --max-tokens many",
        "mesh-node join 127.0.0.1:7443 --memory 1GiB",
        "mesh-coordinator tokens list",
        "X=1 mesh-coordinator up --relase release | cat",
    ],
)
def test_wrong_command_line_is_noticed(line: str) -> None:
    (words,) = commands_in(line)
    with pytest.raises(COMMAND_LINE_ERROR):
        parse(words)


@pytest.mark.parametrize("span", ["mesh verify --depth", "--memroy", "mesh-node join -x"])
def test_wrong_mention_is_noticed(span: str) -> None:
    with pytest.raises(LookupError):
        check_mention(span.split())


def test_documents_hold_command_lines_of_every_program() -> None:
    """A reader of blocks that finds nothing would let everything pass."""
    programs = {param.values[0][0] for param in command_lines()}
    assert programs == set(COMMANDS)


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_python_blocks_compile(path: Path) -> None:
    for language, content in blocks(path.read_text()):
        if language == "python":
            compile(content, name_of(path), "exec")


def all_documents() -> list[Path]:
    folders = (folder for folder in ROOT.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    return [*ROOT.glob("*.md"), *(path for folder in folders for path in folder.rglob("*.md"))]


def broken_links(path: Path) -> list[str]:
    """Relative links of a document that lead to no file, or to no heading of it."""
    broken = []
    for link in _LINK.findall(_FENCED.sub("", path.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def anchors(path: Path) -> set[str]:
    """As GitHub makes them: lower case, without punctuation, hyphens for spaces."""
    headings = _HEADING.findall(_FENCED.sub("", path.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", all_documents(), ids=name_of)
def test_relative_links_lead_somewhere(path: Path) -> None:
    assert broken_links(path) == []


def test_broken_link_is_noticed(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text(
        "# One thing\n[a](a.md) [b](b.md) [c](#one-thing) [d](a.md#two) [e](https://example.org/x.md)\n"
    )
    assert broken_links(document) == ["b.md", "a.md#two"]


def test_exit_codes_of_readme_are_those_of_the_errors() -> None:
    table = (ROOT / "README.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    documented = {
        int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for code in row.split(",")
    }
    assert documented == {0, *SIGNAL_CODES, *(kind.exit_code for kind in errors())}


def test_operator_guide_names_every_environment_variable() -> None:
    guide = (ROOT / "docs" / "operator.md").read_text()
    assert set(re.findall(r"`(MESH_[A-Z_]+)`", guide)) == environment_variables()
