"""One process, the whole model: the answer that a mesh must equal.

Cuts the prompt as the mesh does and samples with the same function, so that with the same engine, and for torch the same
number of threads, the logits are the same bits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch

from mesh.model.engines import LoadedStage
from mesh.model.kv_cache import KvCache
from mesh.model.llama import StageStep
from mesh.model.penalties import TokenHistory
from mesh.model.prefill import prefill_chunks
from mesh.model.sampling import Logits, SamplingParams, sample


def prefill(stage: LoadedStage, cache: KvCache, prompt_ids: Sequence[int]) -> Logits:
    """Run the prompt through a whole-model stage; logits ``[V]`` of its last token."""
    logits = torch.empty(0)
    for chunk in prefill_chunks(len(prompt_ids)):
        ids = torch.tensor(prompt_ids[chunk.start : chunk.stop], device=stage.device)
        [logits] = stage.run([StageStep(cache, chunk.start, ids, None, chunk.stop == len(prompt_ids))])
    return _on_host(logits)


def generate_with_logits(
    stage: LoadedStage,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
) -> Iterator[tuple[int, Logits]]:
    """Each sampled id with the logits ``[V]`` it was drawn from; ends after a stop id, which it includes."""
    max_tokens = len(prompt_ids) + max_new_tokens
    cache = stage.new_cache(max_tokens)
    history = TokenHistory(prompt_ids, len(prompt_ids), max_tokens) if params.needs_history else None
    logits = prefill(stage, cache, prompt_ids)
    for produced in range(1, max_new_tokens + 1):
        token_id = sample(logits, params, cache.position, history)
        if history is not None:
            history.put(cache.position, token_id)
        yield token_id, logits
        if token_id in stop_ids or produced == max_new_tokens:
            return
        ids = torch.tensor([token_id], device=stage.device)
        [row] = stage.run([StageStep(cache, cache.position, ids, None, True)])
        logits = _on_host(row)


def generate(
    stage: LoadedStage,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
) -> Iterator[int]:
    """Sampled ids; ends after a stop id, which it includes."""
    for token_id, _ in generate_with_logits(stage, prompt_ids, params, max_new_tokens, stop_ids):
        yield token_id


def _on_host(logits: torch.Tensor) -> Logits:
    on_host: Logits = logits.cpu().numpy()
    return on_host
