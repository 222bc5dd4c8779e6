"""Rotary position embedding: the frequencies of each variant, and turning queries and keys by them.

Half-split ("NeoX") order, as in Hugging Face checkpoints: dimension i turns together with i + head_dim/2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mesh.architecture import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians per token of each pair: ``[head_dim / 2]``, float32."""
    plain = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(plain, rope)
    if rope.kind == "yarn":
        return _yarn(plain, rope, head_dim)
    return plain


def _llama3(plain: Tensor, rope: RopeConfig) -> Tensor:
    """Llama 3.1's rule: keep wavelengths that fit the original context often, divide those that never do, blend between."""
    wavelength = 2 * math.pi / plain
    long = rope.original_context_length / rope.low_freq_factor
    short = rope.original_context_length / rope.high_freq_factor
    blend = (rope.original_context_length / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - blend) * plain / rope.factor + blend * plain
    scaled = torch.where(wavelength > long, plain / rope.factor, plain)
    return torch.where((wavelength <= long) & (wavelength >= short), blended, scaled)


def _yarn(plain: Tensor, rope: RopeConfig, head_dim: int) -> Tensor:
    """YaRN's rule: keep pairs that turn at least ``beta_fast`` times within the original context, divide those that turn
    at most ``beta_slow`` times, blend between. Borders are whole pairs, as transformers has them by default."""

    def pair_that_turns(times: float) -> float:
        return (
            head_dim
            * math.log(rope.original_context_length / (times * 2 * math.pi))
            / (2 * math.log(rope.theta))
        )

    low = max(math.floor(pair_that_turns(rope.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(rope.beta_slow)), head_dim - 1)
    width = high - low or 0.001  # a step instead of a ramp
    kept = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return plain / rope.factor * (1 - kept) + plain * kept


def cosines_and_sines(
    frequencies: Tensor, positions: Tensor, dtype: torch.dtype, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """``[T, 1, head_dim]`` for ``positions: [T]``, times ``scale``, the sines signed as ``rotate`` wants them.

    Made anew for each run rather than kept in a table: 10 us once for all layers, no memory, and the same bits for a
    position whatever else is in the batch.
    """
    angles = torch.outer(positions.float(), frequencies).unsqueeze(1)  # [T, 1, head_dim / 2]
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn ``x: [T, heads, head_dim]``: each pair (a, b) becomes (a cos - b sin, b cos + a sin)."""
    half = x.shape[-1] // 2
    swapped = torch.cat((x[..., half:], x[..., :half]), dim=-1)
    return x * cos + swapped * sin
