"""Norms of whole layers, sharded or not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thermoopt.kernels import real_elements
from thermoopt.tensors.layout import holds_numbers
from thermoopt.tensors.sharding import Sharding, local

__all__ = ["root_mean_squares"]


@torch.no_grad()
def root_mean_squares(params: Sequence[Tensor]) -> Tensor:
    """Return root mean squares of whole layers, ``[n]``, float64 on the host.

    0 for empty and meta tensors, and for codes of frozen weights
    (:func:`~thermoopt.tensors.layout.holds_numbers`).

    It waits for devices and other ranks; every rank that shares a layer must call it.
    """
    squares = torch.zeros(len(params), 1, dtype=torch.float64, device="cpu")
    for i, p in enumerate(params):
        x = local(p.detach())
        if x.numel() and holds_numbers(x):
            squares[i] = _square(torch.view_as_real(x) if x.is_complex() else x)
    sharding = Sharding(params)
    if sharding:
        squares = sharding.add(squares)
    sizes = [max(1, real_elements(p)) for p in params]
    return (squares[:, 0] / torch.tensor(sizes, dtype=torch.float64, device="cpu")).sqrt()


def _square(x: Tensor) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(x, dtype=dtype).cpu().double() ** 2
