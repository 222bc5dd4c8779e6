"""lm-eval as its users install it: the scores of a mesh are those of transformers in one process, on one node or on three."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mesh.demo.local_mesh import local_mesh
from mesh.demo.processes import command
from tests.clients.test_real_clients import ENVIRONMENTS, is_built
from tests.support.agreement import reference_model
from tests.support.releases import PackedRelease, pack

MODEL = "smollm2-135m-instruct"
ENVIRONMENT = "lm-eval"
RUN_SECONDS = 120
# What float32 leaves open between two engines; measured were 1.4e-5 in log-likelihoods and 1.4e-7 of perplexities.
CLOSE = 2e-4

# Each capital, and two cities that are none; of some countries small models know them better.
CAPITALS = {
    "France": ("Paris", "Lyon", "Nice"), "Italy": ("Rome", "Milan", "Turin"), "Norway": ("Oslo", "Bergen", "Bodø"),
    "Japan": ("Tokyo", "Osaka", "Kyoto"), "Australia": ("Canberra", "Sydney", "Perth"),
    "Turkey": ("Ankara", "Istanbul", "Izmir"), "Switzerland": ("Bern", "Zurich", "Geneva"),
    "Morocco": ("Rabat", "Casablanca", "Fez"), "Brazil": ("Brasília", "Rio de Janeiro", "São Paulo"),
    "Canada": ("Ottawa", "Toronto", "Quebec"), "Nigeria": ("Abuja", "Lagos", "Kano"),
    "Vietnam": ("Hanoi", "Ho Chi Minh City", "Hue"), "Tanzania": ("Dodoma", "Arusha", "Mwanza"),
    "Kazakhstan": ("Astana", "Almaty", "Aktau"),
}  # fmt: skip
TEXTS = (
    "A torrent is a file that tells a client where to find the pieces of other files.",
    "It was the best of times, it was the worst of times, it was the age of wisdom.",
    "Die Würde des Menschen ist unantastbar. 😀",
    "def add(a, b):\n    return a + b\n",
    "The sea was calm, and nobody on the island had seen a ship for seven years.",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55",
)

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not is_built(ENVIRONMENT),
        reason=f"its environment is not built; `make test-lm-eval` builds it into {ENVIRONMENTS.name}/{ENVIRONMENT}",
    ),
]


def choices() -> list[dict[str, Any]]:
    """The right one stands at a place that changes."""
    made = []
    for index, (country, (capital, *wrong)) in enumerate(CAPITALS.items()):
        place = index % 3
        options = [*wrong[:place], capital, *wrong[place:]]
        made.append({"question": f"The capital of {country} is", "choices": options, "answer": place})
    return made


def write_tasks(directory: Path) -> None:
    directory.mkdir()
    tasks: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        "mesh_choice": (
            choices(),
            {
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}}",
                "doc_to_choice": "choices",
                "doc_to_target": "answer",
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            },
        ),
        "mesh_text": (
            [{"text": text} for text in TEXTS],
            {
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "{{text}}",
                "metric_list": [
                    {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
                ],
            },
        ),
    }  # fmt: skip
    for name, (items, fields) in tasks.items():
        data = directory / f"{name}.jsonl"
        data.write_text("".join(f"{json.dumps(item)}\n" for item in items))
        told = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            **fields,
        }
        (directory / f"{name}.yaml").write_text(json.dumps(told))  # YAML holds JSON


@dataclass(frozen=True)
class Evaluated:
    accuracy: float
    perplexity: float
    of_choices: list[
        list[tuple[float, bool]]
    ]  # of each question, of each choice: log-likelihood, is it greedy
    of_texts: list[float]


async def evaluate(packed: PackedRelease, tasks: Path, scratch: Path, num_nodes: int) -> Evaluated:
    async with local_mesh(
        packed.directory, packed.trust_file, packed.manifest, scratch, num_nodes=num_nodes, kv_tokens=1024
    ) as mesh:
        made = await asyncio.to_thread(
            subprocess.run,
            [command("mesh-coordinator"), "key", "create", "--data", str(scratch / "coordinator")],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        key = made.stdout.strip()
        await asyncio.sleep(1.1)  # a running coordinator reads its keys once a second
        return await _run(mesh.url, key, tasks, scratch / "lm-eval")


async def _run(url: str, key: str, tasks: Path, out: Path) -> Evaluated:
    arguments = f"model={MODEL},base_url={url}/v1/completions,auth_token={key}"
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    process = await asyncio.create_subprocess_exec(
        str(ENVIRONMENTS / ENVIRONMENT / "bin" / "lm-eval"),
        "run", "--model", "local-completions", "--model_args", arguments, "--tasks", "mesh_choice,mesh_text",
        "--include_path", str(tasks), "--output_path", str(out), "--log_samples",
        env=environment | {"OPENAI_API_KEY": key, "HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "home"), "NO_PROXY": "*"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(RUN_SECONDS):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, said.decode()[-6000:]
    [results] = (json.loads(path.read_text())["results"] for path in out.rglob("results_*.json"))
    samples = {
        name: [
            json.loads(line)
            for path in out.rglob(f"samples_{name}_*.jsonl")
            for line in path.read_text().splitlines()
        ]
        for name in ("mesh_choice", "mesh_text")
    }
    return Evaluated(
        accuracy=results["mesh_choice"]["acc,none"],
        perplexity=results["mesh_text"]["word_perplexity,none"],
        of_choices=[
            [(float(told), greedy == "True") for [[told, greedy]] in sample["resps"]]
            for sample in _in_order(samples["mesh_choice"])
        ],
        of_texts=[float(sample["resps"][0][0]) for sample in _in_order(samples["mesh_text"])],
    )


def _in_order(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(samples, key=lambda sample: sample["doc_id"])


class OneProcess:
    """The same by transformers alone, weights and tokenizer from the very GGUF file."""

    def __init__(self, gguf: Path) -> None:
        from transformers import AutoTokenizer

        self._model = reference_model(gguf)
        self._tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)

    def ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    @torch.inference_mode()
    def score(self, context: list[int], rest: list[int]) -> tuple[float, bool]:
        """Log-likelihood of ``rest`` after ``context``, and whether it is what would have been written."""
        logits = self._model(torch.tensor([[*context, *rest]])).logits[0, len(context) - 1 : -1]
        logprobs, ids = logits.double().log_softmax(-1), torch.tensor(rest)
        told = logprobs.gather(1, ids[:, None]).sum()
        return float(told), bool((logits.argmax(-1) == ids).all())

    def evaluate(self) -> Evaluated:
        questions = choices()
        of_choices = []
        for item in questions:
            context = self.ids(item["question"])
            whole = [self.ids(f"{item['question']} {choice}") for choice in item["choices"]]
            of_choices.append([self.score(context, ids[len(context) :]) for ids in whole])
        best = [max(range(3), key=lambda place, told=told: told[place][0]) for told in of_choices]
        bos = [self._tokenizer.bos_token_id]
        of_texts = [self.score(bos, self.ids(text))[0] for text in TEXTS]
        words = sum(len(re.split(r"\s+", text)) for text in TEXTS)  # as lm-eval counts them
        return Evaluated(
            accuracy=sum(place == item["answer"] for place, item in zip(best, questions, strict=True)) / len(questions),
            perplexity=math.exp(-sum(of_texts) / words),
            of_choices=of_choices,
            of_texts=of_texts,
        )  # fmt: skip


async def test_lm_eval_finds_the_scores_of_one_process_on_one_node_and_on_three(
    real_gguf: Path, tmp_path: Path
) -> None:
    packed = pack(real_gguf, tmp_path / "publisher", name=MODEL)
    tasks = tmp_path / "tasks"
    write_tasks(tasks)
    one, three, expected = await asyncio.gather(
        evaluate(packed, tasks, tmp_path / "one", 1),
        evaluate(packed, tasks, tmp_path / "three", 3),
        asyncio.to_thread(lambda: OneProcess(real_gguf).evaluate()),
    )
    assert one == three
    assert 1 / 3 < expected.accuracy < 1  # a task that says something
    assert three.accuracy == expected.accuracy
    assert three.perplexity == pytest.approx(expected.perplexity, rel=CLOSE)
    assert three.of_texts == pytest.approx(expected.of_texts, rel=CLOSE)
    for told, wanted in zip(three.of_choices, expected.of_choices, strict=True):
        assert [score for score, _ in told] == pytest.approx([score for score, _ in wanted], abs=CLOSE)
        assert [greedy for _, greedy in told] == [greedy for _, greedy in wanted]
