"""When two greedy answers count as the same, and the reference they are held against.

Two float32 engines add in different orders, so their logits differ in the last bits, and where the two best tokens lie
closer together than that, either is right. The rule: identical tokens, or a first divergence where the reference's best
two logits are less than ``NEAR_TIE`` apart.

The reference, ``transformers`` in float32, is asked once with the tokens under test as its history ("teacher forced"):
if at every place the token is its choice, then by induction it would have written the same answer by itself.

    model = reference_model(directory)
    assert_greedy_agrees(tokens, teacher_forced_logits(model, prompt_ids, tokens))
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

NEAR_TIE = 0.01  # logits


@lru_cache(maxsize=4)
def reference_model(source: Path) -> Any:
    """``transformers``' own LlamaForCausalLM in float32, of a Hugging Face directory or a GGUF file."""
    from transformers import AutoModelForCausalLM  # takes seconds; not every test of this module needs it

    where = {"gguf_file": source.name} if source.suffix == ".gguf" else {}
    directory = source.parent if where else source
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **where).eval()


@torch.inference_mode()
def teacher_forced_logits(model: Any, prompt_ids: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """The reference's logits for each of ``tokens``, given the prompt and the tokens before it: ``[N, V]``."""
    history = torch.tensor([[*prompt_ids, *tokens[:-1]]])
    return model(history, logits_to_keep=len(tokens)).logits[0]


@torch.inference_mode()
def greedy_reference(
    model: Any, prompt_ids: Sequence[int], num_tokens: int
) -> tuple[list[int], torch.Tensor]:
    """What the reference itself writes, end tokens or not, and the logits ``[N, V]`` it chose from."""
    tokens: list[int] = []
    rows: list[torch.Tensor] = []
    # transformers 5.24 calls it so; the name before still works, with a warning.
    cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    answer = model(torch.tensor([prompt_ids]), use_cache=True, logits_to_keep=1)
    while True:
        rows.append(answer.logits[0, -1])
        tokens.append(int(rows[-1].argmax()))
        if len(tokens) == num_tokens:
            return tokens, torch.stack(rows)
        answer = model(torch.tensor([tokens[-1:]]), use_cache=True, **{cache: getattr(answer, cache)})


def assert_greedy_agrees(tokens: Sequence[int], logits: torch.Tensor) -> None:
    """``tokens`` follow the reference's ``logits: [N, V]`` up to a near tie.

    Rows may be teacher forced on ``tokens`` or of the reference's own answer: up to the first divergence they are the
    same, and nothing after it is looked at.
    """
    assert len(tokens) == len(logits), f"{len(tokens)} tokens, {len(logits)} rows of reference logits"
    for index, (token, row) in enumerate(zip(tokens, logits, strict=True)):
        best, second = row.topk(2).values.tolist()
        if token == int(row.argmax()):
            continue
        # The second best may be chosen at a near tie; a third that is further away is wrong even there.
        assert best - float(row[token]) < NEAR_TIE, (
            f"token {index} is {token}, {best - float(row[token]):.4f} logits below the reference's {int(row.argmax())}; "
            f"its best two are {best - second:.4f} apart, a near tie is less than {NEAR_TIE}"
        )
        return
