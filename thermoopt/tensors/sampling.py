"""Which coordinates of a layer are sampled, on one process or on the ranks that share it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thermoopt.kernels import is_dense, real_elements
from thermoopt.tensors.sharding import Sharding, is_distributed, local

__all__ = [
    "BLOCK",
    "STRIDE",
    "WHOLE",
    "gathered",
    "in_order_of",
    "is_gatherable",
    "own_part",
    "real",
    "sample",
    "sample_scale",
    "sample_size",
    "share_of",
]

BLOCK = 16
"""Contiguous elements a sample takes at once: 64 bytes of float32, one cache line, so that traffic shrinks
with the sample."""

STRIDE = 17
"""Of so many blocks one is sampled: below 1/16 of a copy, and prime to the powers of two that rows are long,
so that the sample walks through all columns of a matrix."""

WHOLE = 1 << 14
"""Parameters up to which all are taken: 64 KB, below which a sample would save nothing and be noise."""


def share_of(total: int) -> int:
    """One block in so many is taken of a model with that many real elements."""
    return 1 if total <= WHOLE else STRIDE


def real(x: Tensor, like: Tensor | None = None) -> Tensor:
    """Return this rank's real elements: a shard, a complex tensor's view; a gradient's laid out ``like``."""
    x = local(x.detach(), like)
    return torch.view_as_real(x) if x.is_complex() else x


@dataclass(frozen=True)
class _Stretch:
    """Where a rank's elements lie in the layer's flat order: ``n`` of ``total`` from ``offset`` on."""

    total: int
    offset: int
    n: int


def _stretch(p: Tensor) -> _Stretch | None:
    """The stretch that a rank holds of a layer, or None where it holds several (sharded on columns)."""
    x = real(p)
    if not is_distributed(p):
        return _Stretch(x.numel(), 0, x.numel())
    first = _first_row(p.shape, p.device_mesh, p.placements)  # type: ignore[attr-defined]
    if first is None or not x.is_contiguous():
        return None
    total = real_elements(p)
    row = total // max(1, p.shape[0]) if p.ndim else total
    return _Stretch(total, min(first * row, total), x.numel())


@functools.lru_cache(maxsize=1 << 14)
def _first_row(shape: torch.Size, mesh: Any, placements: Any) -> int | None:
    """Index of a shard's first row, None for one that is not made of whole rows."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    own, offset = compute_local_shape_and_global_offset(shape, mesh, placements)
    if tuple(own[1:]) != tuple(shape[1:]):
        return None
    return offset[0] if shape else 0


def is_gatherable(p: Tensor) -> bool:
    """Whether each rank holds one stretch of the layer, so that the whole sample can be put together."""
    return _stretch(p) is not None


def _size(total: int, share: int) -> int:
    """Elements sampled of a tensor: whole blocks, and of one shorter than a stretch its first share."""
    if share == 1:
        return total
    blocks = total // (share * BLOCK)
    return blocks * BLOCK if blocks else total // share


def sample_size(p: Tensor, share: int) -> int:
    """Elements sampled of a whole layer; of this rank's shard where that is sampled by itself."""
    stretch = _stretch(p)
    return _size(real(p).numel() if stretch is None else stretch.total, share)


def sample_scale(p: Tensor, share: int) -> float:
    """Factor from a sample's sum to the layer's (to the shard's, where that is sampled by itself)."""
    stretch = _stretch(p)
    n = real(p).numel() if stretch is None else stretch.total
    return n / size if (size := _size(n, share)) else 1.0


def sample(p: Tensor, share: int, values: Tensor | None = None) -> Tensor:
    """Take a layer's sample: a view where its memory is dense.

    One block of :data:`BLOCK` elements in ``share``, in the order of the layer's memory. Of a layer sharded
    by rows each rank has those blocks that lie in its shard as a whole, so that the coordinates do not depend
    on the number of ranks. A shard of any other form is sampled by itself.

    Args:
        p: the layer.
        share: as :func:`share_of` gives it.
        values: what to take in the place of ``p``'s own elements, in the order of their memory.
    """
    x = _flat(real(p if values is None else values))
    if share == 1:
        return x
    stretch = _stretch(p) or _Stretch(x.numel(), 0, x.numel())
    distance = share * BLOCK
    if stretch.total < distance:
        return x[: max(0, min(stretch.n, stretch.total // share - stretch.offset))]
    first, last = _blocks(stretch, distance)
    if last < first:
        return x[:0]
    step = x.stride(0)  # a view of a tensor with gaps keeps them
    start = x.storage_offset() + (first * distance - stretch.offset) * step
    return torch.as_strided(x, (last - first + 1, BLOCK), (distance * step, step), start)


def _blocks(stretch: _Stretch, distance: int) -> tuple[int, int]:
    """First and last block that lie in a stretch as a whole."""
    first = -(-stretch.offset // distance)
    last = (stretch.offset + stretch.n - BLOCK) // distance
    return first, min(last, stretch.total // distance - 1)


def gathered(p: Tensor, share: int, own: Tensor, sharding: Sharding, edge: Tensor | None = None) -> Tensor:
    """Put a whole layer's sample together from those of the ranks, flat, on the host; they must all do so.

    Args:
        p: the layer, which must be :func:`is_gatherable`.
        share: as :func:`share_of` gives it.
        own: this rank's part.
        sharding: of ``p`` alone.
        edge: values for blocks that a shard's border cuts, which no rank samples; None leaves them 0.
    """
    stretch = _stretch(p)
    assert stretch is not None
    if not sharding:
        return own.reshape(-1).cpu()
    out = torch.zeros(_size(stretch.total, share), dtype=torch.float64, device="cpu")
    lo, hi = _own_range(stretch, share)
    out[lo:hi] = own.reshape(-1).double().cpu()
    if edge is not None and share != 1 and stretch.total >= share * BLOCK:
        _put_edges(out, stretch, share * BLOCK, _flat(real(edge)))
    return sharding.add(out[None])[0].to(own.dtype)


def _put_edges(out: Tensor, stretch: _Stretch, distance: int, x: Tensor) -> None:
    """Put in what a stretch holds of blocks that its borders cut."""
    end = stretch.offset + stretch.n
    for border in (stretch.offset, end):
        block = border // distance
        lo, hi = block * distance, block * distance + BLOCK
        a, b = max(lo, stretch.offset), min(hi, end)
        if lo < border < hi and a < b and block < len(out) // BLOCK:
            where = block * BLOCK
            out[where + a - lo : where + b - lo] = x[a - stretch.offset : b - stretch.offset].cpu()


def own_part(p: Tensor, share: int, whole: Tensor) -> Tensor:
    """Return this rank's part of a whole layer's flat sample."""
    stretch = _stretch(p)
    if stretch is None:
        return whole
    lo, hi = _own_range(stretch, share)
    return whole[lo:hi]


def _own_range(stretch: _Stretch, share: int) -> tuple[int, int]:
    """Where a rank's part begins and ends in the whole sample."""
    if share == 1:
        return stretch.offset, stretch.offset + stretch.n
    distance = share * BLOCK
    size = _size(stretch.total, share)
    if stretch.total < distance:
        return min(stretch.offset, size), min(stretch.offset + stretch.n, size)
    first, last = _blocks(stretch, distance)
    return (first * BLOCK, (last + 1) * BLOCK) if last >= first else (0, 0)


def in_order_of(param: Tensor, grad: Tensor) -> Tensor:
    """Return a gradient laid out so that its sample holds the same coordinates as its parameter's."""
    p, g = real(param), real(grad, param)
    if p.stride() == g.stride() or (p.is_contiguous() and g.is_contiguous()):
        return g
    return torch.empty_like(p, dtype=g.dtype).copy_(g) if is_dense(p) else g.contiguous()


def _flat(x: Tensor) -> Tensor:
    """One dimension, in the order of memory where it is dense."""
    if x.is_contiguous():
        return x.view(-1)
    return torch.as_strided(x, (x.numel(),), (1,)) if is_dense(x) else x.reshape(-1)
