"""Keys and values of the tokens so far, in buffers that are allocated once.

transformers' own cache joins tensors at every token, which copies it whole each time: at 16K tokens of a 135M model
0.4 GB per token written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, DynamicLayer

from lengthen.generate.attention import Beginning


class BufferLayer(DynamicLayer):
    """One layer's keys and values (B, G, capacity, D), filled from the left up to `length`."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0
        self._k: torch.Tensor | None = None
        self._v: torch.Tensor | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        B, G, T, D = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        self._k = key_states.new_empty(B, G, max(self.capacity, T), D)
        self._v = value_states.new_empty(B, G, max(self.capacity, T), value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        k, v = self._k, self._v
        assert k is not None and v is not None
        end = self.length + key_states.shape[2]
        if end > k.shape[2]:
            capacity = max(end, 2 * k.shape[2])
            k, v = _grown(k, self.length, capacity), _grown(v, self.length, capacity)
            self._k, self._v = k, v
        k[:, :, self.length : end] = key_states
        v[:, :, self.length : end] = value_states
        self.length = end
        self.keys, self.values = k[:, :, :end], v[:, :, :end]
        return k[:, :, :end], v[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def cut(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.length = min(self.length, length)
        if self._k is not None and self._v is not None:
            self.keys, self.values = self._k[:, :, : self.length], self._v[:, :, : self.length]


class Buffers(Cache):
    """The cache of a model: one `BufferLayer` each. `capacity` in tokens is only a first guess; buffers grow."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.buffers = [BufferLayer(capacity) for _ in range(layers)]
        super().__init__(layers=list(self.buffers))

    @property
    def length(self) -> int:
        return self.buffers[0].length

    @property
    def rows(self) -> int:
        keys = self.buffers[0].keys
        return 0 if keys is None else keys.shape[0]

    def cut(self, length: int) -> None:
        """Forget all but the first `length` tokens of every row."""
        for layer in self.buffers:
            layer.cut(length)

    def beginning(self, length: int) -> Beginning:
        """The first `length` tokens of a cache with one row, to be shared by many rows. A view, not a copy."""
        return Beginning([(b.keys[:, :, :length], b.values[:, :, :length]) for b in self.buffers], length)  # type: ignore[index]


def stack(pieces: Sequence[tuple[Buffers, int, int]], room: int) -> tuple[Buffers, torch.Tensor]:
    """One batch from rows of other caches, aligned at their right ends.

    Args:
        pieces: (cache, row, first token that counts); the row's tokens from there to the cache's end are taken.
        room: tokens to be written.

    Returns:
        the cache, and pad_lens_B: unused places at the left of each row.
    """
    lengths = [cache.length - first for cache, _, first in pieces]
    longest = max(lengths)
    made = Buffers(len(pieces[0][0].buffers), longest + room)
    for index, target in enumerate(made.buffers):
        first = pieces[0][0].buffers[index]
        assert first.keys is not None and first.values is not None
        for name in ("_k", "_v"):
            source = first.keys if name == "_k" else first.values
            whole = source.new_zeros(len(pieces), source.shape[1], longest + room, source.shape[3])
            for row, (cache, at, begin) in enumerate(pieces):
                layer = cache.buffers[index]
                old = layer.keys if name == "_k" else layer.values
                assert old is not None
                whole[row, :, longest - lengths[row] : longest] = old[at, :, begin:]
            setattr(target, name, whole)
        target.dtype, target.device, target.is_initialized = first.dtype, first.device, True
        target.length = longest
        target.cut(longest)
    return made, torch.tensor([longest - n for n in lengths])


def _grown(x_BGCD: torch.Tensor, used: int, capacity: int) -> torch.Tensor:
    B, G, _, D = x_BGCD.shape
    made = x_BGCD.new_empty(B, G, capacity, D)
    made[:, :, :used] = x_BGCD[:, :, :used]
    return made
