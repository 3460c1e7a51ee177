"""How evenly the rows of weight matrices are sized, which tells trained weights from fresh ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thermoopt.tensors.layout import holds_numbers
from thermoopt.tensors.sharding import Sharding, local

__all__ = ["uneven_rows"]

LEAST = 16
"""Rows and columns of a matrix below which chance decides: of 16 rows the ratio scatters by 0.35."""

SAMPLE = (256, 4096)
"""Rows and columns at most that are looked at, evenly spaced: a start must not cost a big table's memory."""


@torch.no_grad()
def uneven_rows(params: Sequence[Tensor]) -> Tensor:
    r"""Return how uneven the rows of every matrix are, over what independent entries give.

    .. math::
        F = \frac{n\,\mathrm{var}(q_i)/\bar q^2}{K - 1},\qquad
        q_i = \frac1n\sum_j w_{ij}^2,\quad K = \frac{\overline{w^4}}{\bar q^2}

    About 1, up to a scatter of :math:`\sqrt{2/\mathrm{rows}}`, where entries are drawn independently, from
    whatever distribution; 0 where rows were made alike (orthogonal ones); more where some outputs have grown
    and others have not. Tensors of more dimensions are matrices of their first dimension by the rest; rows of
    zeros are left out.

    Args:
        params: the layers; of a shard each rank looks at its own rows. Every rank that shares a layer must
            call it.

    Returns:
        ``[n]``, float64 on the host, no unit; NaN for vectors, meta tensors, codes, and matrices of fewer
        than 16 rows or columns.

    References:
        derived for this project; the variance of a mean of n independent squares.
    """
    sums = torch.zeros(len(params), 5, dtype=torch.float64, device="cpu")
    for i, p in enumerate(params):
        x = local(p.detach())
        if p.ndim >= 2 and x.ndim >= 2 and x.is_floating_point() and x.numel() and holds_numbers(x):
            sums[i] = _sums(x)
    sharding = Sharding(params)
    if sharding:
        sums = sharding.add(sums)
    rows, width, mean, square, fourth = sums.unbind(1)
    size = torch.where(rows > 0, mean / rows, torch.nan)
    n = width / rows
    spread = (square / rows - size**2) * rows / (rows - 1)
    kurtosis = fourth / width / size**2
    wide = (rows >= LEAST) & (n >= LEAST) & (kurtosis > 1)
    return torch.where(wide, n * spread / size**2 / (kurtosis - 1), torch.nan)


def _sums(x: Tensor) -> Tensor:
    """Return rows, elements, and the sums of q, q^2 and w^4, of a sample of a tensor's rows."""
    x = x.flatten(1)
    down, across = (max(1, -(-size // most)) for size, most in zip(x.shape, SAMPLE, strict=True))
    w = x[::down, ::across].to("cpu", torch.float64).square()
    q = w.mean(1)
    w, q = w[q > 0], q[q > 0]
    parts = (float(len(q)), float(w.numel()), q.sum(), q.square().sum(), w.square().sum())
    return torch.stack([torch.as_tensor(part, dtype=torch.float64, device="cpu") for part in parts])
