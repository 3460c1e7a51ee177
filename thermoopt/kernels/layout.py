"""How a tensor lies in memory."""

from __future__ import annotations

from torch import Tensor

__all__ = ["is_dense"]


def is_dense(t: Tensor) -> bool:
    """Whether the elements of ``t`` fill one stretch of memory, in any order, each once."""
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected and t.numel():
            return False
        expected *= size
    return True
