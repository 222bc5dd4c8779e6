"""``mesh run "prompt"``: one question to a mesh, the answer on stdout as it comes.

An ordinary client of the OpenAI-compatible endpoint; it knows nothing of the mesh that the endpoint does not tell.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.errors import LicenseRefused, MeshError, NotAuthorised, NotFound, Temporary, Unreachable, UsageError

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8080"
CONNECT_TIMEOUT_SECONDS = 5.0
SILENCE_SECONDS = 90.0  # the coordinator says something, if only a keep-alive, every 15 s
SCHEMA = "mesh.run/1"

_BY_STATUS: dict[int, type[MeshError]] = {
    401: NotAuthorised,
    403: LicenseRefused,
    404: NotFound,
    429: Temporary,
    503: Temporary,
    504: Temporary,
}
_RETRY_CODES = ("node_lost", "draining", "no_capacity", "mesh_incomplete", "unavailable")
# What a model says must not steer the terminal it is shown on.
_NO_CONTROL = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def run(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from stdin.")],
    url: Annotated[
        str, typer.Option(envvar="MESH_URL", help="Where the coordinator's HTTP side is.")
    ] = DEFAULT_URL,
    model: Annotated[
        str | None, typer.Option(help="Which model; the first the mesh serves if not given.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message to put before the prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="At most so many tokens.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 takes the likeliest token.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Draw from the likeliest tokens only.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end, no stream.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Route, time to first token and speed, on stderr.")
    ] = False,
) -> None:
    """Ask the mesh and stream the answer."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": sys.stdin.read() if prompt == "-" else prompt})
    wanted = {"max_completion_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    request: dict[str, Any] = {
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **{name: value for name, value in wanted.items() if value is not None},
    }
    try:
        with _connect(url) as client:
            request["model"] = model or _first_model(client)
            answer = _Answer()
            for chunk in _chunks(client, request):
                text = answer.take(chunk)
                if not as_json:
                    sys.stdout.write(text.translate(_NO_CONTROL) if sys.stdout.isatty() else text)
                    sys.stdout.flush()
    except (
        KeyboardInterrupt
    ):  # leaving the blocks has closed the stream, and with it the session on every stage
        sys.stdout.write("\n")
        raise
    sys.stdout.write(answer.to_json() if as_json else "" if answer.text.endswith("\n") else "\n")
    sys.stdout.flush()
    if stats:
        sys.stderr.write(answer.stats())


class _Answer:
    """What the chunks of one stream add up to."""

    def __init__(self) -> None:
        self.text = ""
        self._model, self._finish_reason = "", None
        self._usage: dict[str, int] = {}
        self._mesh: dict[str, Any] = {}

    def take(self, chunk: dict[str, Any]) -> str:
        """The text that this chunk adds."""
        self._model = chunk.get("model") or self._model
        self._usage = chunk.get("usage") or self._usage
        self._mesh = chunk.get("mesh") or self._mesh
        added = ""
        for choice in chunk.get("choices") or ():
            added += choice.get("delta", {}).get("content") or ""
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
        self.text += added
        return added

    def to_json(self) -> str:
        value = {
            "schema": SCHEMA,
            "model": self._model,
            "text": self.text,
            "finish_reason": self._finish_reason,
            "usage": self._usage,
            "mesh": self._mesh,
        }
        return json.dumps(value, ensure_ascii=False) + "\n"

    def stats(self) -> str:
        speed, first = self._mesh.get("tokens_per_second"), self._mesh.get("ttft_ms")
        return (
            f"route {self._mesh.get('route', 'unknown')}\n"
            f"first token after {'?' if first is None else f'{first / 1000:.2f}'} s, "
            f"then {'?' if speed is None else f'{speed:.1f}'} tokens/s, "
            f"{self._usage.get('completion_tokens', '?')} tokens\n"
        )


@contextmanager
def _connect(url: str) -> Iterator[httpx.Client]:
    """A client of the coordinator at ``url``; what goes wrong on the way becomes our errors."""
    import httpx

    try:
        base = httpx.URL(url)
        # A proxy that the environment names cannot reach this machine's loopback.
        is_loopback = base.host in ("localhost", "::1") or base.host.startswith("127.")
        with httpx.Client(
            base_url=base,
            timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
            trust_env=not is_loopback,
        ) as client:
            yield client
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as exc:
        raise UsageError(f"--url {url}: {exc}; expected for example {DEFAULT_URL}") from exc
    except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
        raise Unreachable(
            f"no coordinator at {url}: start one with `mesh-coordinator up --release DIR`, "
            "or name another with --url"
        ) from exc
    except httpx.TimeoutException as exc:
        raise Temporary(f"{url} went silent for {SILENCE_SECONDS:g} s; see its log, then try again") from exc
    except httpx.HTTPError as exc:
        raise Temporary(f"the connection to {url} broke off: {exc}; try again") from exc


def _first_model(client: httpx.Client) -> str:
    response = client.get("/v1/models")
    _check(response)
    models = _json_object(response.text, "/v1/models").get("data") or []
    if not models:
        raise NotFound(f"the coordinator at {client.base_url} serves no model yet")
    try:
        return str(models[0]["id"])
    except (LookupError, TypeError) as exc:
        raise MeshError(
            f"{client.base_url} does not list models as an OpenAI-compatible server does"
        ) from exc


def _chunks(client: httpx.Client, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from httpx_sse import SSEError, connect_sse

    with connect_sse(client, "POST", "/v1/chat/completions", json=request) as source:
        if source.response.is_error:
            source.response.read()
        _check(source.response)
        try:
            for event in source.iter_sse():
                if event.data == "[DONE]":
                    return
                chunk = _json_object(event.data, "the stream")
                if (error := chunk.get("error")) is not None:
                    told = error if isinstance(error, dict) else {"message": error}
                    kind = Temporary if told.get("code") in _RETRY_CODES else MeshError
                    raise kind(f"the answer broke off: {told.get('message')}")
                yield chunk
        except SSEError as exc:
            raise MeshError(f"{client.base_url} does not speak the OpenAI streaming API: {exc}") from exc
    raise Temporary("the answer broke off: the coordinator ended the stream early; try again")


def _check(response: httpx.Response) -> None:
    """Raises our error for the coordinator's. Takes any body: it may be a proxy that answers."""
    if response.is_success:
        return
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"{response.request.url} answered HTTP {response.status_code}"
    if (seconds := response.headers.get("Retry-After")) is not None:
        message += f"; try again in {seconds} s"
    raise _BY_STATUS.get(response.status_code, MeshError)(message)


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise MeshError(
            f"{where} of the coordinator is not JSON; is it an OpenAI-compatible server?"
        ) from exc
    if not isinstance(value, dict):
        raise MeshError(
            f"{where} of the coordinator is not a JSON object; is it an OpenAI-compatible server?"
        )
    return value
