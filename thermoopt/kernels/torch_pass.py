"""A measuring pass in plain torch operations: any device, any dtype that AdamW takes.

The pass runs before torch's own step and writes nothing: it computes the moments that the step is about
to compute, piece by piece in a scratch buffer of fixed size, so memory beyond AdamW's own does not grow
with the parameters. Nothing is copied to the host here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thermoopt.kernels.layout import is_dense
from thermoopt.physics.sums import Sum

__all__ = ["LayerTensors", "Parcel", "measure"]

CPU_PIECE = 1 << 17
"""Elements per piece on CPU: 7 scratch rows of 512 KB stay in the caches of two cores. Of 16 K to 256 K
this was fastest on a 2-core AVX-512 machine (64 K and 128 K within noise; 16 K took 3 times as long)."""

DEVICE_PIECE = 1 << 22
"""Elements per piece on other devices: few launches, 112 MB of scratch, and counts stay exact in float32.
Not measured on a GPU."""

_ROWS = 7


@dataclass
class LayerTensors:
    """What the sums of one tensor are computed from, before the step.

    ``step`` is the number of this step (1 for the first), a float or a 0-d tensor on the device;
    ``exp_avg`` and ``exp_avg_sq`` are None before the first step, ``max_exp_avg_sq`` without amsgrad.
    """

    param: Tensor
    grad: Tensor
    exp_avg: Tensor | None
    exp_avg_sq: Tensor | None
    max_exp_avg_sq: Tensor | None
    step: float | Tensor
    beta1: float
    beta2: float
    eps: float
    amsgrad: bool = False
    maximize: bool = False


@dataclass(frozen=True)
class Parcel:
    """Sums of pieces on one device in one precision, to be added up on the host.

    Attributes:
        layer: the layer each piece belongs to.
        sums: ``[n_pieces, len(Sum)]`` on the device, formed from the raw moments: bias corrections are
            factors on whole sums and are put in on the host.
    """

    layer: list[int]
    sums: Tensor


@torch.no_grad()
def measure(layers: Sequence[LayerTensors], grad_scale: Tensor | None = None) -> list[Parcel]:
    """Compute the sums of every layer's coming step without changing a tensor.

    Args:
        layers: the tensors and constants of each layer.
        grad_scale: the factor of a fused GradScaler by which gradients are still multiplied.

    Returns:
        Parcels of device tensors, one for each device and precision.
    """
    pieces: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    owner: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
    for index, layer in enumerate(layers):
        n = _flat(layer.param).numel()
        if n == 0:
            continue
        wide = layer.param.dtype in (torch.float64, torch.complex128)
        dtype = torch.float64 if wide else torch.float32
        key = (layer.param.device, dtype)
        size = CPU_PIECE if key[0].type == "cpu" else DEVICE_PIECE
        if key not in scratch or scratch[key].shape[1] < min(n, size):
            scratch[key] = torch.empty(_ROWS, min(n, size), dtype=dtype, device=key[0])
        for sums in _layer_pieces(layer, scratch[key], size, grad_scale):
            pieces.setdefault(key, []).extend(sums)
            owner.setdefault(key, []).append(index)
    return [Parcel(owner[key], torch.stack(sums).view(-1, len(Sum))) for key, sums in pieces.items()]


def _layer_pieces(
    layer: LayerTensors, scratch: Tensor, size: int, grad_scale: Tensor | None
) -> list[list[Tensor]]:
    tensors = [layer.param, layer.grad, layer.exp_avg, layer.exp_avg_sq, layer.max_exp_avg_sq]
    flat = _flat_alike(tensors)
    n = flat[0].numel()  # type: ignore[union-attr]  # the parameter is never None
    size = math.ceil(n / math.ceil(n / size))  # equal pieces: a short last piece would take as many calls
    # sqrt of the second bias correction, moved from v to eps: a host float, or on the device with the step
    if isinstance(layer.step, Tensor):
        correction = 1 - layer.beta2 ** layer.step.to(scratch.dtype)
        bc2: float | Tensor = correction
        root: float | Tensor = correction.sqrt()
    else:
        bc2 = 1 - layer.beta2**layer.step
        root = math.sqrt(bc2)
    return [
        _piece_sums(
            [x[a : a + size] if x is not None else None for x in flat],
            layer,
            layer.eps * root,
            layer.eps**2 * bc2,
            grad_scale,
            scratch[:, : min(size, n - a)],
        )
        for a in range(0, n, size)
    ]


def _piece_sums(
    piece: list[Tensor | None],
    layer: LayerTensors,
    eps: float | Tensor,
    eps2: float | Tensor,
    grad_scale: Tensor | None,
    row: Tensor,
) -> list[Tensor]:
    """Sums of one piece with raw moments and P' = 1 / (sqrt(v) + eps sqrt(1 - beta2**t))."""
    p, g, m, v, vmax = piece
    assert p is not None
    assert g is not None
    dtype = row.dtype
    if g.dtype != dtype or layer.maximize or grad_scale is not None:
        g = row[0].copy_(g)
        if grad_scale is not None:
            g.div_(grad_scale)
        if layer.maximize:
            g.neg_()
    if p.dtype != dtype:
        p = row[1].copy_(p)
    # m <- lerp(m, g, 1 - beta1), v <- lerp(v, g**2, 1 - beta2)
    new_m, new_v, g2, pre, work = row[2], row[3], row[4], row[5], row[6]
    torch.mul(g, g, out=g2)
    if m is None or v is None:
        torch.mul(g, 1 - layer.beta1, out=new_m)
        torch.mul(g2, 1 - layer.beta2, out=new_v)
    elif m.dtype == dtype:
        torch.lerp(m, g, 1 - layer.beta1, out=new_m)
        torch.lerp(v, g2, 1 - layer.beta2, out=new_v)
    else:
        new_m.copy_(m).lerp_(g, 1 - layer.beta1)
        new_v.copy_(v).lerp_(g2, 1 - layer.beta2)
    gg = g2.sum()
    # C: present over remembered gradient energy; D: elements that ever had a gradient
    torch.add(new_v, eps2, out=work)
    torch.div(g2, work, out=work)
    c = torch.nan_to_num(work, nan=0.0, out=work).sum() if layer.eps == 0 else work.sum()
    d = torch.gt(new_v, 0, out=work).sum()
    # P'
    if layer.amsgrad:
        torch.sqrt(new_v if vmax is None else torch.maximum(new_v, vmax.to(dtype), out=pre), out=pre)
    else:
        torch.sqrt(new_v, out=pre)
    pre.add_(eps).reciprocal_()
    sv = torch.dot(new_v, pre)
    # g P'
    torch.mul(g, pre, out=work)
    b = torch.dot(g, work)
    n1 = work.abs_().sum()
    # U' = m P'
    u = torch.mul(new_m, pre, out=pre)
    out = [gg] * len(Sum)
    out[Sum.A] = torch.dot(g, u)
    out[Sum.B] = b
    out[Sum.UU] = torch.dot(u, u)
    out[Sum.TU] = torch.dot(p, u)
    out[Sum.TT] = torch.dot(p, p)
    out[Sum.MU] = torch.dot(new_m, u)
    out[Sum.SV] = sv
    out[Sum.GT] = torch.dot(g, p)
    out[Sum.V] = new_v.sum()
    out[Sum.M2] = torch.dot(new_m, new_m)
    out[Sum.C] = c
    out[Sum.N1] = n1
    out[Sum.D] = d
    return out


def _flat(x: Tensor) -> Tensor:
    x = x.detach()
    return torch.view_as_real(x) if x.is_complex() else x


def _flat_alike(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """One-dimensional views with elements in one common order (a copy only where layouts differ)."""
    real = [None if x is None else _flat(x) for x in tensors]
    first = real[0]
    assert first is not None
    alike = all(x is None or x.stride() == first.stride() for x in real)
    if alike and not first.is_contiguous() and is_dense(first):
        return [None if x is None else torch.as_strided(x, (x.numel(),), (1,)) for x in real]
    return [None if x is None else x.reshape(-1) for x in real]
