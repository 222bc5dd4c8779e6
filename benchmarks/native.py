"""Native stage against torch stage on the same shards: tokens per second, interleaved.

    python -m benchmarks.native [MODEL.gguf] [--threads 2] [--rounds 5]

One process, all layers, no network and no sampling beyond argmax. Shared machines drift, so the engines take turns and
the ratio of medians is what counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mesh.demo.demo_model import demo_model_path
from mesh.layers import LayerRange
from mesh.model.engines import LoadedStage
from mesh.model.llama import StageStep
from mesh.model.loader import load_stage
from mesh.model.prefill import prefill_chunks
from mesh.publishing import pack_release
from mesh.weights.releases.release import Release
from mesh.weights.trust.signing import PrivateKey, TrustRoot

PROMPT_TOKENS, DECODED_TOKENS, BATCHED_TOKENS = 512, 64, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file or a Hugging Face directory")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        release = _packed(options.model or demo_model_path(), Path(scratch))
        config = release.manifest.config
        layers = LayerRange(0, config.num_layers)
        paths = {ref: release.shard_path(ref) for ref in release.manifest.shards_for(layers)}
        stages = [load_stage(config, layers, paths, engine=engine) for engine in ("native", "torch")]
    print(f"{release.manifest.name} {release.manifest.quantization}, {options.threads} thread(s)")
    print(f"{'':14}{stages[0].kernel_id:>24}{stages[1].kernel_id:>34}   ratio")
    for name, measure in MEASURES.items():
        speeds: tuple[list[float], list[float]] = ([], [])
        for _ in range(options.rounds):
            for stage, found in zip(stages, speeds, strict=True):
                found.append(measure(stage))
        native, reference = map(statistics.median, speeds)
        print(f"{name:14}{native:18.1f} tok/s{reference:28.1f} tok/s   {native / reference:.2f}", flush=True)


def _packed(source: Path, scratch: Path) -> Release:
    key = PrivateKey.generate()
    pack_release(source, scratch / "release", "Apache-2.0", None, key, name=None)
    return Release.open(scratch / "release", TrustRoot.of(key.public))


def _prefill(stage: LoadedStage) -> float:
    ids = torch.arange(1, PROMPT_TOKENS + 1)
    cache = stage.new_cache(PROMPT_TOKENS)
    began = time.perf_counter()
    for chunk in prefill_chunks(PROMPT_TOKENS):
        last = chunk.stop == PROMPT_TOKENS
        stage.run([StageStep(cache, chunk.start, ids[chunk.start : chunk.stop], None, last)])
    return PROMPT_TOKENS / (time.perf_counter() - began)


def _decode(stage: LoadedStage, sessions: int, tokens: int) -> float:
    """Tokens per second of all sessions together."""
    caches = [stage.new_cache(tokens + 1) for _ in range(sessions)]
    chosen = [torch.tensor([5 + index]) for index in range(sessions)]
    began = time.perf_counter()
    for _ in range(tokens):
        steps = [
            StageStep(cache, cache.position, ids, None, True)
            for cache, ids in zip(caches, chosen, strict=True)
        ]
        chosen = [logits.argmax().view(1) for logits in stage.run(steps)]
    return sessions * tokens / (time.perf_counter() - began)


MEASURES: dict[str, Callable[[LoadedStage], float]] = {
    "prefill 512": _prefill,
    "decode": lambda stage: _decode(stage, 1, DECODED_TOKENS),
    "decode x 8": lambda stage: _decode(stage, 8, BATCHED_TOKENS),
    "decode x 16": lambda stage: _decode(stage, 16, BATCHED_TOKENS),
}


if __name__ == "__main__":
    main()
