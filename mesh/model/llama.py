"""LLaMA and what is shaped like it, any contiguous range of its layers, in one readable file.

``Stage.run`` takes a batch of steps of several sessions: linear layers run once over all their rows, attention runs per
session against its own cache. That call is the seam where a faster engine drops in; this one is the reference, the
fallback and the GPU path. It knows tensors; nothing of files, sessions' owners or the wire.

    stage = load_stage(config, LayerRange(0, 10), paths)
    cache = stage.new_cache(max_tokens=512)
    [hidden] = stage.run([StageStep(cache, 0, token_ids, None, sample=False)])

Exactness: the result of a layer depends on its input rows and the kernels alone, not on which stage computes it, so
with the same batches of steps and the same thread count any cut of the layers gives the same bits.

Sources: Touvron et al. 2023 (arXiv 2302.13971); Ainslie et al. 2023 (arXiv 2305.13245) for grouped queries; Jiang et al.
2023 (arXiv 2310.06825) for the sliding window; transformers' ``modeling_qwen2.py`` and ``modeling_qwen3.py`` for biases
and normed queries and keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # its customary name
from torch import Tensor

from mesh.architecture import LlamaConfig
from mesh.layers import LayerRange
from mesh.model.kv_cache import KvCache, StepRefused
from mesh.model.rope import cosines_and_sines, inverse_frequencies, rotate
from mesh.model.stage_weights import LayerWeights, StageWeights


@dataclass(frozen=True, slots=True, eq=False)
class StageStep:
    """Some tokens of one session. The first stage gets ``token_ids: [T]``, every other ``hidden: [T, D]``."""

    cache: KvCache
    position: int  # of the first token
    token_ids: Tensor | None
    hidden: Tensor | None
    sample: bool  # the last stage answers with the logits of the last row
    all_rows: bool = (
        False  # the last stage answers with every row, for ``Stage.logits``, whatever ``sample`` says
    )

    @property
    def num_tokens(self) -> int:
        given = self.token_ids if self.token_ids is not None else self.hidden
        assert given is not None
        return int(given.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """What every layer of one run needs to know of the steps; their rows lie one after the other."""

    caches: list[KvCache]
    sizes: list[int]  # T of each step
    firsts: list[
        int
    ]  # of each step: the first held token that any of its rows sees; 0 without a sliding window
    masks: list[
        Tensor | None
    ]  # [T, S] of each step: which tokens from there a row may see; None: see ``_attend``
    cos: Tensor  # [sum T, 1, head_dim]
    sin: Tensor


def check_steps(steps: Sequence[StageStep], config: LlamaConfig, layers: LayerRange) -> None:
    """What every engine asks of a batch for a stage of ``layers``. Raises StepRefused; nothing has changed by then."""
    if len({id(step.cache) for step in steps}) != len(steps):
        raise StepRefused("two steps of one session in one run; the second must wait for the first")
    is_first = layers.is_first()
    for step in steps:
        if (step.token_ids is None) == is_first or (step.hidden is None) != is_first:
            wanted = "token ids and no hidden states" if is_first else "hidden states and no token ids"
            raise StepRefused(f"a step for layers {layers}: expected {wanted}")
        given, width = (step.token_ids, ()) if is_first else (step.hidden, (config.hidden_size,))
        assert given is not None
        if given.shape[1:] != width or given.shape[0] == 0:
            raise StepRefused(f"a step of shape {tuple(given.shape)}: expected one or more rows of {width}")
        step.cache.check(step.position, step.num_tokens)


class Stage:
    """A contiguous range of layers, ready to compute."""

    def __init__(
        self,
        config: LlamaConfig,
        layers: LayerRange,
        weights: StageWeights,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.layers, self.device, self.dtype = config, layers, device, dtype
        self.is_first, self.is_last = layers.is_first(), layers.is_last(config.num_layers)
        self._weights = weights
        self._frequencies = inverse_frequencies(config.rope, config.head_dim).to(device)

    @classmethod
    def from_tensors(
        cls,
        config: LlamaConfig,
        layers: LayerRange,
        tensors: Mapping[str, Tensor],
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Stage:
        """From tensors by Hugging Face's names, as in a state dict; copies what the range needs."""
        weights = StageWeights(config, layers, device, dtype)
        for role, layer in weights.shards():
            prefix = "" if role == "head" else "model." if layer is None else f"model.layers.{layer}."
            for name, place in weights.places(role, layer).items():
                place.copy_(tensors["model.norm.weight" if name == "norm.weight" else prefix + name])
        return cls(config, layers, weights, device, dtype)

    @property
    def kernel_id(self) -> str:
        return kernel_id(self.device, self.dtype)

    def new_cache(self, max_tokens: int) -> KvCache:
        return KvCache(self.config, len(self.layers), max_tokens, self.device, self.dtype)

    @torch.inference_mode()
    def run(self, steps: Sequence[StageStep]) -> list[Tensor]:
        """Compute the steps, at most one per session.

        Returns for each the hidden states ``[T, D]``; on the last stage the logits ``[V]`` float32 of the last row if
        ``sample``, else an empty tensor; but the hidden states there too if ``all_rows``. Raises StepRefused before
        anything has changed.
        """
        check_steps(steps, self.config, self.layers)
        batch = self._batch(steps)
        hidden = torch.cat([self._enter(step) for step in steps])  # [sum T, D], ours to write to
        for index, layer in enumerate(self._weights.layers):
            hidden += self._attention(index, layer, hidden, batch)
            hidden += self._mlp(layer, hidden)
        for step in steps:
            step.cache.advance(step.num_tokens)
        rows = list(hidden.split(batch.sizes))
        return self._last_logits(rows, steps) if self.is_last else rows

    @torch.inference_mode()
    def logits(self, rows: Tensor) -> Tensor:
        """Logits ``[T, V]`` float32 of hidden states ``[T, D]`` that the last stage has given."""
        assert self._weights.final_norm is not None
        assert self._weights.head is not None
        return (self._norm(rows, self._weights.final_norm) @ self._weights.head).float()

    def _batch(self, steps: Sequence[StageStep]) -> _Batch:
        positions = torch.cat([torch.arange(s.position, s.position + s.num_tokens) for s in steps])
        cos, sin = cosines_and_sines(
            self._frequencies, positions.to(self.device), self.dtype, self.config.rope.attention_factor
        )
        firsts = [self._first_seen(step.position) for step in steps]
        return _Batch(
            caches=[step.cache for step in steps],
            sizes=[step.num_tokens for step in steps],
            firsts=firsts,
            masks=[
                self._mask(step.position - first, step.num_tokens)
                for first, step in zip(firsts, steps, strict=True)
            ],
            cos=cos,
            sin=sin,
        )

    def _first_seen(self, position: int) -> int:
        window = self.config.sliding_window
        return 0 if window is None else max(0, position + 1 - window)

    def _mask(self, before: int, num_tokens: int) -> Tensor | None:
        """Of rows that follow ``before`` tokens of which the first row sees all."""
        window = self.config.sliding_window
        is_whole = window is None or before + num_tokens <= window  # the last row sees all before it too
        if num_tokens == 1 or (before == 0 and is_whole):
            return None
        visible = torch.ones(num_tokens, before + num_tokens, dtype=torch.bool, device=self.device)
        visible.tril_(before)
        return visible if window is None or is_whole else visible.triu_(before + 1 - window)

    def _enter(self, step: StageStep) -> Tensor:
        if not self.is_first:
            assert step.hidden is not None
            return step.hidden.to(self.device, self.dtype)
        assert step.token_ids is not None
        assert self._weights.embedding is not None
        return self._weights.embedding[step.token_ids]

    def _attention(self, index: int, layer: LayerWeights, hidden: Tensor, batch: _Batch) -> Tensor:
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        qkv = _times(self._norm(hidden, layer.input_norm), layer.qkv, layer.qkv_bias)
        qkv = qkv.view(-1, heads + 2 * kv_heads, self.config.head_dim)
        turning = qkv[:, : heads + kv_heads]  # queries and keys
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = turning[:, :heads], turning[:, heads:]
            turning = torch.cat((self._norm(query, layer.query_norm), self._norm(key, layer.key_norm)), dim=1)
        turned = rotate(turning, batch.cos, batch.sin)
        queries = turned[:, :heads].split(batch.sizes)  # each [T, heads, head_dim]
        keys = turned[:, heads:].split(batch.sizes)  # each [T, kv_heads, head_dim]
        values = qkv[:, heads + kv_heads :].split(batch.sizes)
        attended = []
        steps = zip(batch.caches, batch.firsts, batch.masks, queries, keys, values, strict=True)
        for cache, first, mask, q, k, v in steps:
            held_keys, held_values = cache.append(index, k.transpose(0, 1), v.transpose(0, 1))
            seen = held_keys[:, first:], held_values[:, first:]
            attended.append(self._attend(q.transpose(0, 1), *seen, mask))
        return F.linear(torch.cat(attended), layer.output, layer.output_bias)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """``q: [heads, T, head_dim]`` against ``k, v: [kv_heads, S, head_dim]``: ``[T, heads * head_dim]``.

        Without a mask either one row sees everything, or nothing was held before and row t sees tokens 0 to t.
        """
        num_tokens = q.shape[1]
        out = F.scaled_dot_product_attention(
            q.unsqueeze(0),
            k.unsqueeze(0),
            v.unsqueeze(0),
            attn_mask=mask,
            is_causal=mask is None and num_tokens > 1,
            enable_gqa=self.config.num_heads != self.config.num_kv_heads,
        )
        return out[0].transpose(0, 1).reshape(num_tokens, -1)

    def _mlp(self, layer: LayerWeights, hidden: Tensor) -> Tensor:
        normed = self._norm(hidden, layer.mlp_norm)
        gate, up = _times(normed, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, layer.down, layer.down_bias)

    def _last_logits(self, rows: Sequence[Tensor], steps: Sequence[StageStep]) -> list[Tensor]:
        wanted = [row[-1] for row, step in zip(rows, steps, strict=True) if step.sample and not step.all_rows]
        logits = iter(self.logits(torch.stack(wanted)) if wanted else ())
        nothing = torch.empty(0, device=self.device)
        return [
            row if step.all_rows else next(logits) if step.sample else nothing
            for row, step in zip(rows, steps, strict=True)
        ]

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm (Zhang and Sennrich 2019), in float32 whatever the weights are."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return wide.to(x.dtype) * weight


def _times(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """``x: [T, in]`` times ``matrix: [in, out]``."""
    return x @ matrix if bias is None else torch.addmm(bias, x, matrix)


def kernel_id(device: str, dtype: torch.dtype = torch.float32) -> str:
    """Names what may make results differ between machines in their last bits."""
    if device.startswith("cuda"):
        kind = torch.cuda.get_device_name(device).replace(" ", "-")
    else:
        kind = f"{device}-{torch.backends.cpu.get_cpu_capability().lower()}"
    return f"torch-{torch.__version__.split('+')[0]}-{kind}-{str(dtype).removeprefix('torch.')}"
