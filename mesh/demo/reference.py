"""The one-process answer that the demo and its test compare the mesh with."""

from __future__ import annotations

from pathlib import Path

import torch

from mesh.layers import LayerRange
from mesh.model.chat_template import ChatTemplate
from mesh.model.loader import load_stage
from mesh.model.local import generate
from mesh.model.sampling import SamplingParams
from mesh.model.tokenizer import Tokenizer
from mesh.weights.releases.release import Release
from mesh.weights.shards.shard import read_shard
from mesh.weights.trust.signing import TrustRoot


def one_process_answer(
    directory: Path, trust: TrustRoot, prompt: str, max_tokens: int, *, engine: str = "torch"
) -> tuple[str, int]:
    """Text and number of tokens (the end token included) of a greedy answer to one user message.

    ``engine`` must be the nodes' own: another one rounds differently.
    """
    release = Release.open(directory, trust)
    manifest = release.manifest
    aux_ref = manifest.shard("aux")
    aux = read_shard(release.shard_path(aux_ref), aux_ref)
    tokenizer = Tokenizer.from_aux(aux)
    text = ChatTemplate.from_aux(aux, tokenizer).render([{"role": "user", "content": prompt}])
    prompt_ids = tokenizer.encode(text, add_special=False)

    torch.set_num_threads(1)  # as every node of the demo: with torch another count may round differently
    layers = LayerRange(0, manifest.config.num_layers)
    paths = {ref: release.shard_path(ref) for ref in manifest.shards_for(layers)}
    stage = load_stage(manifest.config, layers, paths, device="cpu", engine=engine)
    decoder = tokenizer.decoder()
    parts: list[str] = []
    count = 0
    for token_id in generate(stage, prompt_ids, SamplingParams(), max_tokens, manifest.config.eos_token_ids):
        count += 1
        if token_id not in manifest.config.eos_token_ids:
            parts.append(decoder.push(token_id))
    return "".join(parts) + decoder.flush(), count
