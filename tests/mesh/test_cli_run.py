"""``mesh run`` against a real coordinator's HTTP side: the answer on stdout, and every failure as one line."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import StringIO

import pytest
import typer
from click.testing import Result
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp
from typer.testing import CliRunner

from coordinator.api import create_app
from coordinator.token_pipeline import PipelineLost, TokenPipeline
from mesh.cli.main import main
from mesh.cli.run import run
from mesh.errors import (
    LicenseRefused,
    MeshError,
    NotAuthorised,
    NotFound,
    RequestRefused,
    Temporary,
    UsageError,
)
from tests.support.api_client import app_for
from tests.support.fake_pipeline import FakePipeline, refused
from tests.support.http_server import serving
from tests.support.served_model import EOS, health

Invoke = Callable[..., "asyncio.Future[Result]"]


@asynccontextmanager
async def mesh_run(app: ASGIApp) -> AsyncIterator[Invoke]:
    """``await invoke("prompt", "--seed", "1")`` in a thread, while the server runs here."""
    command = typer.Typer()
    command.command()(run)
    async with serving(app) as url:

        def invoke(*arguments: str, stdin: str | None = None) -> asyncio.Future[Result]:
            return asyncio.ensure_future(
                asyncio.to_thread(
                    CliRunner().invoke, command, list(arguments), input=stdin, env={"MESH_URL": url}
                )
            )

        yield invoke


async def invoke_once(pipeline: TokenPipeline, *arguments: str, stdin: str | None = None) -> Result:
    async with mesh_run(app_for(pipeline)) as invoke:
        return await invoke(*arguments, stdin=stdin)


# -- answers


async def test_the_answer_is_all_there_is_on_stdout() -> None:
    result = await invoke_once(FakePipeline([*"né 😀".encode(), EOS]), "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "né 😀\n", "")


async def test_options_reach_the_session() -> None:
    pipeline = FakePipeline(b"abcdef")
    options = [
        "--max-tokens",
        "3",
        "--temperature",
        "0.5",
        "--top-p",
        "0.25",
        "--seed",
        "9",
        "--model",
        "tiny",
        "--system",
        "short",
    ]
    result = await invoke_once(pipeline, "hi", *options)
    assert result.stdout == "abc\n"
    [asked] = pipeline.requests
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.seed) == (0.5, 0.25, 9)
    assert bytes(i for i in asked.prompt_ids if i < 256) == b"system\nshort\nuser\nhi\nassistant\n"


async def test_a_dash_reads_the_prompt_from_stdin() -> None:
    pipeline = FakePipeline([EOS])
    await invoke_once(pipeline, "-", stdin="from a pipe")
    assert b"user\nfrom a pipe" in bytes(i for i in pipeline.requests[0].prompt_ids if i < 256)


async def test_json_is_one_object() -> None:
    result = await invoke_once(FakePipeline([*b"hello", EOS]), "hi", "--json")
    value = json.loads(result.stdout)
    assert (value["schema"], value["model"], value["text"]) == ("mesh.run/1", "tiny", "hello")
    assert (value["finish_reason"], value["usage"]["completion_tokens"]) == ("stop", 6)
    assert value["mesh"]["route"] == "0:2 node-a → 2:4 node-b"


async def test_stats_go_to_stderr() -> None:
    result = await invoke_once(FakePipeline([*b"hello", EOS]), "hi", "--stats")
    assert result.stdout == "hello\n"
    assert "route 0:2 node-a → 2:4 node-b\n" in result.stderr
    assert "tokens/s, 6 tokens" in result.stderr


async def test_the_answer_is_shown_as_it_comes() -> None:
    pipeline = FakePipeline(b"abcdef", park_at=3)
    loop = asyncio.get_running_loop()

    def resume(shown: str) -> None:
        if shown == "abc":
            loop.call_soon_threadsafe(pipeline.resume.set)

    async with serving(app_for(pipeline)) as url:
        await run_on(terminal := _Terminal(resume), url)
    assert terminal.getvalue() == "abcdef\n"  # it would have waited for ever if "abc" had not been shown


async def test_what_a_model_says_does_not_steer_the_terminal() -> None:
    pipeline = FakePipeline([*"\x1b[2J\x07a\tb\n\x9bc".encode(), EOS])
    terminal = _Terminal()
    async with serving(app_for(pipeline)) as url:
        await run_on(terminal, url)
    assert terminal.getvalue() == "[2Ja\tb\nc\n"


async def test_ctrl_c_is_130_and_leaves_the_session() -> None:
    pipeline = FakePipeline(b"abcdef", park_at=3)

    def interrupt(shown: str) -> None:
        if shown.endswith("c"):
            raise KeyboardInterrupt

    async with serving(app_for(pipeline)) as url:
        code = await run_on(_Terminal(interrupt), url)
        async with asyncio.timeout(5):
            await pipeline.left.wait()
    assert code == 130
    assert pipeline.open_sessions == 0


class _Terminal(StringIO):
    """A stdout that is a terminal, and somebody in front of it."""

    def __init__(self, on_shown: Callable[[str], object] = lambda shown: None) -> None:
        super().__init__()
        self._on_shown = on_shown

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        super().flush()
        if not self.closed:
            self._on_shown(self.getvalue())


async def run_on(terminal: _Terminal, url: str) -> int:
    """The whole command line, typed at ``terminal``; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", terminal)
        return await asyncio.to_thread(main, ["run", "hi", "--url", url])


# -- failures


async def failure(app: ASGIApp, *arguments: str) -> MeshError:
    async with mesh_run(app) as invoke:
        result = await invoke(*(arguments or ("hi",)))
    assert isinstance(result.exception, MeshError), result.exception
    assert "\n" not in str(result.exception)
    return result.exception


def test_no_coordinator_is_unreachable_and_says_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # bound but not listening: refused, and nobody else gets it
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        code = main(["run", "hi", "--url", url])
    stdout, stderr = capsys.readouterr()
    assert (code, stdout) == (6, "")
    assert f"no coordinator at {url}: start one with `mesh-coordinator up" in stderr
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("url", ["ftp://x", "nonsense", "http://x:y"])
def test_an_odd_url_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="--url"):
        run("hi", url=url)


async def test_an_unknown_model_is_not_found() -> None:
    error = await failure(app_for(FakePipeline(b"")), "hi", "--model", "absent")
    assert isinstance(error, NotFound)
    assert "tiny" in str(error)


async def test_a_coordinator_without_models_is_not_found() -> None:
    error = await failure(create_app({}, health))
    assert isinstance(error, NotFound)
    assert "serves no model yet" in str(error)


async def test_missing_layers_are_temporary_and_say_when_to_retry() -> None:
    refusal = RequestRefused("layers 2:4 have no node", status=503, code="mesh_incomplete", retry_after=7)
    error = await failure(app_for(refused(refusal)))
    assert isinstance(error, Temporary)
    assert str(error) == "layers 2:4 have no node; try again in 7 s"


async def test_a_node_lost_in_the_middle_is_temporary() -> None:
    error = await failure(app_for(FakePipeline(b"abc", failure=PipelineLost("node-b is gone"), fail_at=2)))
    assert isinstance(error, Temporary)
    assert "node-b is gone" in str(error)


async def test_a_refused_request_is_an_error_with_the_coordinators_words() -> None:
    error = await failure(app_for(FakePipeline(b"")), "x" * 600)
    assert error.exit_code == 1
    assert "maximum context length is 512 tokens" in str(error)


@pytest.mark.parametrize(
    ("status", "kind"), [(401, NotAuthorised), (403, LicenseRefused), (429, Temporary), (500, MeshError)]
)
@pytest.mark.parametrize("shaped", [True, False])
async def test_a_status_has_its_exit_code_whatever_the_body(
    status: int, kind: type[MeshError], shaped: bool
) -> None:
    body = {"error": {"message": "no", "type": "t", "param": None, "code": "c"}}
    answer = JSONResponse(body, status) if shaped else PlainTextResponse("a proxy's\npage", status)
    error = await failure(answer)
    assert type(error) is kind


@pytest.mark.parametrize("page", ["<html>", "[]", '{"data": "x"}', '{"data": [{"id": "m"}]}'])
async def test_something_else_on_that_port_is_an_error_and_not_a_crash(page: str) -> None:
    error = await failure(PlainTextResponse(page))
    assert "OpenAI" in str(error)
