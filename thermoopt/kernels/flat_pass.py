"""The measuring pass on a device without one of our kernels: few launches, however many tensors there are.

Tensors are copied, a few million elements at a time, into flat buffers. Each row of a buffer belongs to one
tensor; the last row of a tensor is padded with zeros. Every operation then covers all tensors at once, and
sums are formed row by row. The rows of a tensor are added in a fixed order, so runs repeat bit for bit. Only
the buffers are written and nothing waits for the device, so a captured graph measures as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.kernels.torch_pass import LayerTensors
from thermoopt.physics.sums import Sum

__all__ = ["ROW", "FlatPass", "is_flat"]

ROW = 1024
"""Elements per row. Tensors are padded to whole rows; for 200 tensors of 1,000 elements that costs little."""

PACK = 1 << 23
"""Elements per pack: float32 buffers of 32 MB each. Not tuned on a GPU."""

FAN_IN = 16
"""Rows added at a time: a tensor of 64 M elements takes four rounds."""

_BUFFERS = 7


def is_flat(layer: LayerTensors) -> bool:
    """Whether the pass can take a tensor: real, not float64, eps above 0 and contiguous with its state.

    (With eps = 0 the padding would divide zero by zero.)
    """
    tensors = (layer.param, layer.grad, layer.exp_avg, layer.exp_avg_sq, layer.max_exp_avg_sq)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return layer.eps > 0 and all(x is None or (x.dtype in dtypes and x.is_contiguous()) for x in tensors)


@dataclass
class _Pack:
    """A few slices of tensors: their rows in the buffers, and which tensor each row belongs to."""

    stretches: list[tuple[int, int, int]]
    rows: int
    owner: Tensor


class FlatPass:
    """A layout of tensors in flat buffers, reused while their number and sizes stay.

    Args:
        sizes: elements of each tensor.
        device: of all of them.
        pack: maximum number of elements in a pack, a multiple of :data:`ROW`.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device, pack: int = PACK) -> None:
        self.sizes = list(sizes)
        self._device = device
        self._packs: list[_Pack] = []
        stretches: list[tuple[int, int, int]] = []
        used = 0
        for i, size in enumerate(sizes):
            start = 0
            while start < size:
                n = min(size - start, pack - used)
                stretches.append((i, start, n))
                used += -(-n // ROW) * ROW
                start += n
                if used >= pack:
                    self._close(stretches, used)
                    stretches, used = [], 0
        if stretches:
            self._close(stretches, used)
        self._rows = max((p.rows for p in self._packs), default=0)
        owners = np.concatenate([p.owner.cpu().numpy() for p in self._packs] or [np.zeros(0, np.int64)])
        counts = np.bincount(owners, minlength=len(self.sizes))
        self._filled = torch.from_numpy(np.flatnonzero(counts)).to(device)
        self._rounds = [torch.from_numpy(index).to(device) for index in _rounds(counts[counts > 0])]

    def _close(self, stretches: list[tuple[int, int, int]], used: int) -> None:
        owner = [i for i, _, n in stretches for _ in range(-(-n // ROW))]
        self._packs.append(_Pack(stretches, used // ROW, torch.tensor(owner, device=self._device)))

    @torch.no_grad()
    def measure(
        self, layers: Sequence[LayerTensors], constants: Tensor, grad_scale: Tensor | None = None
    ) -> Tensor:
        """Compute the sums of the coming step of every tensor.

        Args:
            layers: the tensors, of the sizes the layout was made for; only the tensors are read.
            constants: ``[5, n]`` on the device, float64: beta1, beta2, eps, the step's number, and -1 if
                the objective is maximised, else 1.
            grad_scale: the factor of a fused GradScaler by which gradients are still multiplied.

        Returns:
            ``[n, len(Sum)]``, float64, on the device, with bias corrections.
        """
        beta1, beta2, eps, t, _ = constants
        bc1, bc2 = 1 - beta1**t, 1 - beta2**t
        # raw moments: P' = 1 / (sqrt(v) + eps sqrt(bc2)) = P / sqrt(bc2)
        scaled = torch.stack([1 - beta1, 1 - beta2, eps * bc2.sqrt(), eps**2 * bc2, constants[4]])
        rows = []
        buffers = torch.empty(_BUFFERS, self._rows * ROW, dtype=torch.float32, device=self._device)
        amsgrad = any(layer.amsgrad for layer in layers)
        for pack in self._packs:
            flat = buffers[:, : pack.rows * ROW]
            _fill(flat, pack, layers, amsgrad)
            own = scaled.index_select(1, pack.owner).float()[:, :, None]
            rows.append(_row_sums(flat.view(_BUFFERS, pack.rows, ROW), own, amsgrad, grad_scale))
        sums = torch.zeros(len(self.sizes), len(Sum), dtype=torch.float64, device=self._device)
        if rows:
            sums.index_copy_(0, self._filled, self._added(torch.cat(rows)))
        return sums * _corrections(bc1, bc2)

    def _added(self, rows: Tensor) -> Tensor:
        """Add up the rows of each tensor."""
        for index in self._rounds:
            padded = torch.cat([rows, torch.zeros_like(rows[:1])])
            rows = padded.index_select(0, index.view(-1)).view(*index.shape, -1).sum(dim=1)
        return rows


def _rounds(counts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the rows that each round adds, ``[rows left, FAN_IN]``, for ``counts`` rows per tensor.

    The last row is zero.
    """
    out = []
    while counts.max(initial=0) > 1:
        total = counts.sum()
        left = -(-counts // FAN_IN)
        start = np.repeat(np.cumsum(counts) - counts, left)
        number = np.arange(left.sum()) - np.repeat(np.cumsum(left) - left, left)
        index = (start + number * FAN_IN)[:, None] + np.arange(FAN_IN)
        end = np.repeat(np.cumsum(counts), left)
        out.append(np.where(index < end[:, None], index, total))
        counts = left
    return out


def _fill(flat: Tensor, pack: _Pack, layers: Sequence[LayerTensors], amsgrad: bool) -> None:
    """Copy a pack's tensors into the first four buffers (gradient, parameter, moments) and the maximum."""
    flat.zero_()
    into: list[Tensor] = []
    of: list[Tensor] = []
    at = 0
    for i, start, n in pack.stretches:
        x = layers[i]
        top = x.max_exp_avg_sq if x.amsgrad else None
        columns = (x.grad, x.param, x.exp_avg, x.exp_avg_sq, top if amsgrad else None)
        for buffer, tensor in zip(flat, columns, strict=False):
            if tensor is not None:
                into.append(buffer[at : at + n])
                of.append(tensor.detach().view(-1)[start : start + n])
        at += -(-n // ROW) * ROW
    torch._foreach_copy_(into, of)


def _row_sums(b: Tensor, c: Tensor, amsgrad: bool, grad_scale: Tensor | None) -> Tensor:
    """Sums of every row with raw moments, ``[rows, len(Sum)]``, float64.

    Args:
        b: ``[7, rows, ROW]``: gradient, parameter, moments, maximum; two to work in.
        c: ``[5, rows, 1]``: 1 - beta1, 1 - beta2, eps and its square for raw moments, and the sign.
        amsgrad: whether the maximum is used; it is 0 for tensors that have none.
        grad_scale: by which gradients are still multiplied.
    """
    g, p, m, v, top, pre, work = b
    if grad_scale is not None:
        g.div_(grad_scale)
    g.mul_(c[4])
    m.lerp_(g, c[0].expand_as(m))
    g2 = torch.mul(g, g, out=work)
    v.lerp_(g2, c[1].expand_as(v))
    columns: dict[Sum, Tensor] = {Sum.GG: _sum(g2), Sum.V: _sum(v)}
    torch.sqrt(torch.maximum(v, top, out=pre) if amsgrad else v, out=pre)
    pre.add_(c[2]).reciprocal_()
    columns[Sum.SV] = _sum(torch.mul(v, pre, out=top))
    columns[Sum.C] = _sum(g2.div_(torch.add(v, c[3], out=top)))
    columns[Sum.D] = _sum(torch.gt(v, 0, out=top))
    gp = torch.mul(g, pre, out=work)
    columns[Sum.B] = _sum(torch.mul(g, gp, out=top))
    columns[Sum.N1] = _sum(gp.abs_())
    u = pre.mul_(m)
    pairs = {Sum.A: (g, u), Sum.UU: (u, u), Sum.TU: (p, u), Sum.TT: (p, p)}
    pairs |= {Sum.MU: (m, u), Sum.GT: (g, p), Sum.M2: (m, m)}
    for column, (x, y) in pairs.items():
        columns[column] = _sum(torch.mul(x, y, out=work))
    return torch.stack([columns[column] for column in Sum], dim=1).double()


def _sum(x: Tensor) -> Tensor:
    return x.sum(dim=1)


def _corrections(bc1: Tensor, bc2: Tensor) -> Tensor:
    """Factors from sums of raw moments to those of corrected ones, ``[n, len(Sum)]``."""
    root, one = bc2.sqrt(), torch.ones_like(bc1)
    factors = dict.fromkeys(Sum, one)
    factors[Sum.A] = factors[Sum.TU] = root / bc1
    factors[Sum.B] = factors[Sum.N1] = root
    factors[Sum.UU] = (root / bc1) ** 2
    factors[Sum.MU] = root / bc1**2
    factors[Sum.SV] = root / bc2
    factors[Sum.V] = 1 / bc2
    factors[Sum.M2] = 1 / bc1**2
    factors[Sum.C] = bc2
    return torch.stack([factors[column] for column in Sum], dim=1)
