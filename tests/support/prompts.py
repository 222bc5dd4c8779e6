"""Prompts of different lengths for the real model: one token, a few, one chunk, several chunks, a chat."""

from __future__ import annotations

from mesh.model.chat_template import ChatTemplate
from mesh.model.tokenizer import Tokenizer
from mesh.weights.shards.shard import read_shard
from tests.support.releases import PackedRelease

_TEXTS = (
    "The",
    "Once upon a time",
    "def fibonacci(n):\n    ",
    "The capital of France is Paris, and the capital of Japan is",
    "1, 2, 3, 5, 8, 13,",
    "Ein Torrent ist eine Datei, die beschreibt, wo die Teile einer größeren Datei liegen. " * 6,
    "Weights are split into signed shards that peers fetch from each other. " * 24,
)


def real_prompts(packed: PackedRelease) -> list[tuple[int, ...]]:
    """Token ids, shortest a single token, longest more than two prefill chunks of 128."""
    release = packed.open()
    ref = release.manifest.shard("aux")
    aux = read_shard(release.shard_path(ref), ref)
    tokenizer = Tokenizer.from_aux(aux)
    chat = ChatTemplate.from_aux(aux, tokenizer).render([{"role": "user", "content": "Who are you?"}])
    prompts = [tuple(tokenizer.encode(text, add_special=False)) for text in (*_TEXTS, chat)]
    assert len(prompts[0]) == 1
    assert max(map(len, prompts)) > 256
    return prompts
