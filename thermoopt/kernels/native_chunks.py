"""How the native kernel cuts tensors into chunks: all of them, or one half that stands for the whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thermoopt.kernels.native_library import Call

__all__ = ["CHUNK", "HALVED", "Chunks"]

CHUNK = 8192
"""Elements per chunk: 128 KB of float32 parameter, gradient and moments, which fit a level-2 cache."""

HALVED = 16
"""Minimum number of chunks of a tensor that may be measured by one half: eight chunks, 65,536 elements."""

_Part = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float64] | None]
"""Tensor and first element of each chunk; ``[n]`` elements of each tensor by those read, or None for 1."""


class Chunks:
    """The chunks of ``n`` tensors, in their order, and their even and odd halves.

    Args:
        sizes: elements of each tensor, ``[n]``.

    Attributes:
        tensor, start: ``[count]`` tensor of each chunk, and its first element in that.
    """

    def __init__(self, sizes: NDArray[np.int64]) -> None:
        counts = -(-sizes // CHUNK)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        self._sizes = sizes
        self.tensor = np.repeat(np.arange(len(sizes), dtype=np.int32), counts)
        self.start = (np.arange(int(counts.sum()), dtype=np.int64) - first) * CHUNK
        self._halves: dict[int, _Part] = {}

    def __len__(self) -> int:
        return len(self.tensor)

    def put(self, call: Call, half: int | None) -> None:
        """Let the coming calls read all chunks, or one half whose sums are scaled up."""
        if half is None:
            if not self._halves:  # as it was made
                return
            tensor, start, scale = self.tensor, self.start, None
        else:
            if half not in self._halves:
                self._halves[half] = self._half(half)
            tensor, start, scale = self._halves[half]
        call.chunk_tensor, call.chunk_start = tensor.ctypes.data, start.ctypes.data
        call.n_chunks = len(tensor)
        call.scale = None if scale is None else scale.ctypes.data

    def _half(self, half: int) -> _Part:
        sizes, tensor, start = self._sizes, self.tensor, self.start
        keep = (start // CHUNK % 2 == half) | (sizes[tensor] <= (HALVED - 1) * CHUNK)
        count = np.minimum(sizes[tensor] - start, CHUNK)[keep]
        read = np.bincount(tensor[keep], weights=count, minlength=len(sizes))
        scale = np.divide(sizes, read, out=np.ones(len(sizes)), where=read > 0)
        return tensor[keep].copy(), start[keep].copy(), scale
