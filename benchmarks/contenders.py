"""Ways to continue the same prompt with the same weights, each measured by its own clock.

Every contender computes in float32 with one thread per process and answers greedily. Decoding alone is timed: from the
first token, which ends the prefill, to the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import torch

from mesh.architecture import LlamaConfig
from mesh.demo.local_mesh import local_mesh
from mesh.errors import MeshError
from mesh.layers import LayerRange
from mesh.model.chat_template import ChatTemplate
from mesh.model.loader import load_stage
from mesh.model.local import generate
from mesh.model.sampling import SamplingParams
from mesh.model.tokenizer import Tokenizer
from mesh.weights.releases.release import Release
from mesh.weights.shards.shard import read_shard

# Of every process: three nodes share one machine, and more threads would only wait for each other.
THREADS = 1
KV_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Task:
    """What every contender is asked."""

    question: str
    prompt_ids: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    num_tokens: int
    tokens_per_second: float  # after the first


class Contender(Protocol):
    @property
    def name(self) -> str: ...

    async def answer(self, task: Task) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Prompter:
    """Text to ids and back as the release has it, so that nobody measures another prompt."""

    config: LlamaConfig
    tokenizer: Tokenizer
    template: ChatTemplate

    @classmethod
    def of(cls, release: Release) -> Prompter:
        ref = release.manifest.shard("aux")
        shard = read_shard(release.shard_path(ref), ref)
        tokenizer = Tokenizer.from_aux(shard)
        return cls(release.manifest.config, tokenizer, ChatTemplate.from_aux(shard, tokenizer))

    def task(self, question: str, max_tokens: int) -> Task:
        text = self.template.render([{"role": "user", "content": question}])
        return Task(question, tuple(self.tokenizer.encode(text, add_special=False)), max_tokens)

    def answer(self, ids: Sequence[int], times: Sequence[float]) -> Answer:
        """From the ids and when each of them came."""
        shown = [token_id for token_id in ids if token_id not in self.config.eos_token_ids]
        speed = (len(ids) - 1) / (times[-1] - times[0]) if len(ids) > 1 else float("nan")
        return Answer(self.tokenizer.decode(shown), len(ids), speed)


class OneProcess:
    """A Stage of all layers: what the mesh is measured against."""

    name = "one process"

    def __init__(self, release: Release, prompter: Prompter) -> None:
        config = release.manifest.config
        layers = LayerRange(0, config.num_layers)
        paths = {ref: release.shard_path(ref) for ref in release.manifest.shards_for(layers)}
        self._stage = load_stage(config, layers, paths, engine="torch")
        self._prompter = prompter

    async def answer(self, task: Task) -> Answer:
        return await asyncio.to_thread(self._answer, task)

    def _answer(self, task: Task) -> Answer:
        torch.set_num_threads(THREADS)
        ids, times = [], []
        stop_ids = self._prompter.config.eos_token_ids
        for token_id in generate(self._stage, task.prompt_ids, SamplingParams(), task.max_tokens, stop_ids):
            ids.append(token_id)
            times.append(time.perf_counter())
        return self._prompter.answer(ids, times)


class Transformers:
    """``transformers``' own ``generate``, of the checkpoint that the release was packed from."""

    name = "transformers"

    def __init__(self, source: Path, prompter: Prompter) -> None:
        import transformers
        from transformers.utils import logging

        logging.disable_progress_bar()
        gguf = {"gguf_file": source.name} if source.suffix == ".gguf" else {}
        directory = source.parent if gguf else source
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, **gguf
        ).eval()
        self._prompter = prompter

    async def answer(self, task: Task) -> Answer:
        return await asyncio.to_thread(self._answer, task)

    def _answer(self, task: Task) -> Answer:
        torch.set_num_threads(THREADS)
        arrivals = _Arrivals()
        prompt = torch.tensor([task.prompt_ids])
        written = self._model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=task.max_tokens,
            do_sample=False,
            eos_token_id=list(self._prompter.config.eos_token_ids),
            pad_token_id=self._prompter.config.eos_token_ids[0] if self._prompter.config.eos_token_ids else 0,
            streamer=arrivals,
        )
        return self._prompter.answer(written[0, len(task.prompt_ids) :].tolist(), arrivals.times)


class _Arrivals:
    """A streamer for ``generate`` that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._has_prompt = False

    def put(self, ids: torch.Tensor) -> None:
        if self._has_prompt:
            self.times.append(time.perf_counter())
        self._has_prompt = True

    def end(self) -> None:
        pass


class Nodes:
    """Coordinator, seeder and nodes as processes of their own, asked over HTTP; its figure is the coordinator's."""

    def __init__(self, client: httpx.AsyncClient, model: str, num_nodes: int) -> None:
        self._client, self._model = client, model
        self.name = f"{num_nodes} nodes"

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, release: Release, trust: Path, scratch: Path, num_nodes: int
    ) -> AsyncIterator[Nodes]:
        manifest = release.manifest
        async with (
            local_mesh(
                release.directory, trust, manifest, scratch, num_nodes=num_nodes, kv_tokens=KV_TOKENS
            ) as mesh,
            httpx.AsyncClient(base_url=mesh.url, timeout=300.0, trust_env=False) as client,
        ):
            yield cls(client, manifest.name, num_nodes)

    async def answer(self, task: Task) -> Answer:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": task.question}],
            "max_tokens": task.max_tokens,
            "temperature": 0,
        }
        response = await self._client.post("/v1/chat/completions", json=body)
        if response.status_code != 200:
            raise MeshError(f"the coordinator refused the request: {response.text}")
        value = response.json()
        return Answer(
            value["choices"][0]["message"]["content"],
            value["usage"]["completion_tokens"],
            value["mesh"]["tokens_per_second"],
        )
