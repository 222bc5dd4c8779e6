"""Keys and values of one session on one stage, and the budget that bounds all of them."""

from __future__ import annotations

import torch

from mesh.architecture import LlamaConfig
from mesh.errors import MeshError


class StepRefused(MeshError):
    """A step that does not continue its session's cache, or does not fit the stage; nothing has changed."""


class KvCache:
    """Rotated keys and values of every layer of a stage, for one session.

    Allocated once, for the tokens the session was opened for, which the budget has counted: it never grows, so no copy
    of it ever exists beside it. On a CPU the operating system gives memory only to what was written, so a session that
    reserves a long answer and gets a short one costs little.
    """

    def __init__(
        self,
        config: LlamaConfig,
        num_layers: int,
        max_tokens: int,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.max_tokens = max_tokens
        self.position = 0  # tokens held
        # [L, keys | values, kv_heads, max_tokens, head_dim]
        shape = (num_layers, 2, config.num_kv_heads, max_tokens, config.head_dim)
        self._data = torch.empty(shape, device=device, dtype=dtype)

    @property
    def nbytes(self) -> int:
        """Memory taken when full."""
        return int(self._data.nbytes)

    @property
    def address(self) -> int:
        """Where the float32 numbers of a cache in main memory lie, for an engine that writes them itself."""
        return int(self._data.data_ptr())

    def check(self, position: int, num_tokens: int) -> None:
        """Raises StepRefused unless a step of ``num_tokens`` at ``position`` comes next and fits."""
        if position != self.position:
            raise StepRefused(f"a step at position {position}: the cache holds {self.position} tokens")
        if position + num_tokens > self.max_tokens:
            raise StepRefused(
                f"a step to position {position + num_tokens}: the session was opened for {self.max_tokens} tokens"
            )

    def append(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write ``[kv_heads, T, head_dim]`` after what is held, return all of the layer: ``[kv_heads, S, head_dim]``.

        ``position`` moves only in ``advance``, once all layers have been written.
        """
        end = self.position + keys.shape[1]
        self._data[layer, 0, :, self.position : end] = keys
        self._data[layer, 1, :, self.position : end] = values
        return self._data[layer, 0, :, :end], self._data[layer, 1, :, :end]

    def advance(self, num_tokens: int) -> None:
        self.position += num_tokens

    def truncate(self, position: int) -> None:
        """Forget everything from ``position`` on."""
        assert 0 <= position <= self.position
        self.position = position


class KvBudget:
    """Pure accounting: which sessions have reserved how many of a stage's tokens."""

    def __init__(self, total_tokens: int) -> None:
        self.total_tokens = total_tokens
        self._reserved: dict[str, int] = {}

    @property
    def free_tokens(self) -> int:
        return self.total_tokens - sum(self._reserved.values())

    def reserve(self, session: str, tokens: int) -> bool:
        """Whether the session now holds ``tokens``; if not, nothing has changed."""
        if session in self._reserved or not 0 < tokens <= self.free_tokens:
            return False
        self._reserved[session] = tokens
        return True

    def release(self, session: str) -> None:
        """Give back what the session holds; releasing twice is harmless."""
        self._reserved.pop(session, None)
