"""How many numbers a tensor holds, and how it lies in memory."""

from __future__ import annotations

from torch import Tensor

__all__ = ["is_dense", "real_elements"]


def real_elements(t: Tensor) -> int:
    """Number of real elements, over all ranks if the tensor is sharded; a complex element counts twice."""
    return t.numel() * (2 if t.is_complex() else 1)


def is_dense(t: Tensor) -> bool:
    """Whether the elements of ``t`` fill one contiguous block of memory, each once, in any order."""
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected and t.numel():
            return False
        expected *= size
    return True
