"""What is asked and answered stays between client and mesh: no log, no output and no directory of any process holds it.

Every dialect is asked with a phrase of its own and made to answer with another, and each is refused with the phrase in the
request. The ids of all requests are found again where operators look for them: in every node's log.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx

from mesh.demo.local_mesh import coordinator_command, node_command, seeder_command
from mesh.demo.processes import Child, Event, children
from mesh.demo.splitting import shares
from mesh.wire import generation_pb2, generation_pb2_grpc
from tests.support.releases import PackedRelease, pack_tiny

ASKED = "quartz zebra 9317"
ANSWERED = "umber lantern 4471"
ONLY_ANSWER = {
    "type": "object",
    "properties": {"said": {"enum": [ANSWERED]}},
    "required": ["said"],
    "additionalProperties": False,
}
MESSAGES = [{"role": "user", "content": ASKED}]
KV_TOKENS = 2048
START_SECONDS = 60.0


@dataclass
class Mesh:
    url: str
    grpc: str
    coordinator: Child
    nodes: list[Child]
    scratch: Path
    events: list[Event] = field(default_factory=list)  # what they said on stdout

    def kept(self) -> dict[str, bytes]:
        """Everything the processes have written anywhere."""
        files = {str(path): path.read_bytes() for path in self.scratch.rglob("*") if path.is_file()}
        return files | {"stdout": json.dumps(self.events, ensure_ascii=False).encode()}


@asynccontextmanager
async def talkative_mesh(packed: PackedRelease, scratch: Path) -> AsyncIterator[Mesh]:
    """Coordinator and two nodes, as verbose as they can be."""
    logs, events = scratch / "logs", list[Event]()
    logs.mkdir(parents=True)
    async with children(logs, lambda name, event: events.append(event)) as start:
        up = coordinator_command(packed.directory, packed.trust_file, scratch / "coordinator")
        coordinator = await start("coordinator", [*up, "--verbose"])
        listening = await coordinator.event("listening", within_seconds=START_SECONDS)
        to, token = listening["grpc"], listening["token"]
        await start("seeder", seeder_command(packed.directory, packed.trust_file, to, token))
        nodes = [
            await start(
                f"node-{index}",
                [
                    *node_command(
                        to, token, f"n{index}", scratch / f"n{index}", packed.manifest, share, KV_TOKENS, "auto"
                    ),
                    "--verbose",
                ],
            )
            for index, share in enumerate(shares(packed.manifest.config, 2, KV_TOKENS))
        ]  # fmt: skip
        for node in nodes:
            await node.event("ready", within_seconds=START_SECONDS)
        yield Mesh(f"http://{listening['http']}", to, coordinator, nodes, scratch, events)


# By dialect: where it is asked, and a request that can only be answered with ANSWERED.
QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (
        "/v1/chat/completions",
        {"messages": MESSAGES, "structured_outputs": {"json": ONLY_ANSWER}, "stream": True, "logprobs": True},
    ),
    "completions": (
        "/v1/completions",
        {"prompt": ASKED, "structured_outputs": {"json": ONLY_ANSWER}, "echo": True, "logprobs": 1},
    ),
    "responses": (
        "/v1/responses",
        {
            "input": ASKED,
            "text": {"format": {"type": "json_schema", "name": "said", "schema": ONLY_ANSWER, "strict": True}},
        },
    ),
    "messages": (
        "/v1/messages",
        {
            "messages": MESSAGES,
            "tools": [{"name": "say", "description": ASKED, "input_schema": ONLY_ANSWER}],
            "tool_choice": {"type": "tool", "name": "say"},
        },
    ),
}  # fmt: skip
# What each is refused for, with ASKED in the request.
WRONG: tuple[tuple[dict[str, Any], int], ...] = (
    ({"temperature": ASKED}, 400),  # of the wrong kind
    ({"max_tokens": -1, "max_output_tokens": -1}, 400),  # out of bounds
    ({"model": "absent"}, 404),
)


async def ask(http: httpx.AsyncClient, dialect: str, request_id: str, **fields: Any) -> httpx.Response:
    path, body = QUESTIONS[dialect]
    length = "max_output_tokens" if dialect == "responses" else "max_tokens"
    asked = {"model": "tiny", length: 300, "temperature": 0, **body, **fields}
    return await http.post(path, json=asked, headers={"x-request-id": request_id})


async def ask_grpc(channel: grpc.aio.Channel, request_id: str, **fields: Any) -> str:
    request = generation_pb2.GenerateRequest(
        **{
            "model": "tiny",
            "chat": generation_pb2.Chat(messages=[generation_pb2.ChatMessage(role="user", content=ASKED)]),
            "max_tokens": 300,
            "json_schema": json.dumps(ONLY_ANSWER),
            **fields,
        }
    )
    stub = generation_pb2_grpc.GenerationStub(channel)
    events = [event async for event in stub.Generate(request, metadata=(("x-request-id", request_id),))]
    return "".join(event.text.text for event in events)


def said(response: httpx.Response) -> str:
    """The answer's text, of a stream too."""
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    texts = [choice["delta"].get("content") or "" for line in lines for choice in json.loads(line)["choices"]]
    return "".join(texts) or response.text


async def test_nothing_that_is_said_is_kept_and_every_request_is_found_in_every_nodes_log(
    tmp_path: Path,
) -> None:
    packed = pack_tiny(tmp_path / "packed", num_layers=2, context_length=1024)
    async with (
        talkative_mesh(packed, tmp_path / "mesh") as mesh,
        httpx.AsyncClient(base_url=mesh.url, trust_env=False, timeout=30) as http,
        grpc.aio.insecure_channel(mesh.grpc) as channel,
    ):
        answered, refused = [], []
        for dialect in QUESTIONS:
            response = await ask(http, dialect, f"said-{dialect}")
            assert response.status_code == 200, response.text
            assert response.headers["x-request-id"] == f"said-{dialect}"
            assert ANSWERED in said(response)
            answered.append(f"said-{dialect}")
            for number, (fields, status) in enumerate(WRONG):
                wrong = await ask(http, dialect, f"refused-{dialect}-{number}", **fields)
                assert wrong.status_code == status, wrong.text
                refused.append(f"refused-{dialect}-{number}")
        assert ANSWERED in await ask_grpc(channel, "said-grpc")
        answered.append("said-grpc")
        for number, fields in enumerate(({"json_schema": ASKED}, {"model": "absent"}, {"max_tokens": 0})):
            try:
                await ask_grpc(channel, f"refused-grpc-{number}", **fields)
            except grpc.aio.AioRpcError as exc:
                assert exc.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
                refused.append(f"refused-grpc-{number}")
        broken = await http.post("/v1/chat/completions", content=f'{{"messages": "{ASKED}')
        assert broken.status_code == 400
        refused.append(broken.headers["x-request-id"])
        late = await ask(http, "chat", "late", timeout=0.01)  # ends with an error after it has begun
        assert "deadline_exceeded" in late.text
        async with asyncio.timeout(10):
            while not all(request in _log(node) for node in mesh.nodes for request in answered):
                await asyncio.sleep(0.02)
    for process, found in mesh.kept().items():
        for phrase in (ASKED, ANSWERED):
            for form in (phrase.encode(), *_as_ids(phrase)):
                assert form not in found, f"{process} holds {form!r}"
    told = _log(mesh.coordinator)
    assert [request for request in (*answered, *refused) if f"request_id={request}" not in told] == []


def _log(child: Child) -> str:
    return child.log.read_text()


def _as_ids(phrase: str) -> tuple[bytes, bytes]:
    """The tiny tokenizer's ids are the text's bytes."""
    ids = [str(byte) for byte in phrase.encode()]
    return ", ".join(ids).encode(), " ".join(ids).encode()
