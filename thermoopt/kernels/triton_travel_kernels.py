"""Device code of the impulse sums: Triton kernels that ``triton_travel.py`` launches."""

from __future__ import annotations

from thermoopt.kernels.triton_kernels import IMPORT_ERROR, jit

if IMPORT_ERROR is None:
    import triton.language as tl

__all__ = ["distance_kernel", "force_kernel", "work_kernel"]


@jit
def _from_first(geometry, n, i, j):
    """Offset of the ``j``-th sampled elements of layer ``i`` from its first."""
    width = tl.load(geometry + n + i).to(tl.int32)
    row = j // width  # 32 bits: a division of 64 takes ten times as long
    return row.to(tl.int64) * tl.load(geometry + 2 * n + i) + (j - row * width)


@jit
def force_kernel(
    addresses,
    geometry,
    chunk_tensor,
    chunk_index,
    rates,
    base,
    base_stride,
    weights,
    grad_scale,
    found_inf,
    start,
    impulse,
    partials,
    n,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Add the forces on a block of one layer's sample to S, and write the block's part of their work.

    ``geometry`` is ``[4, n]``: sampled elements, width and distance of the stretches, place in flat buffers.
    """
    chunk = tl.program_id(0)
    i = tl.load(chunk_tensor + chunk)
    size = tl.load(geometry + i).to(tl.int32)
    place = tl.load(geometry + 3 * n + i)
    rate = tl.load(rates + i)
    if base is not None:
        rate *= tl.load(base + i * base_stride).to(tl.float64)
    rate = rate.to(tl.float32)
    keep = tl.load(weights).to(tl.float32)
    weight = tl.load(weights + 2).to(tl.float32)
    scale = 1.0
    if grad_scale is not None:
        scale = tl.load(grad_scale).to(tl.float32)
    j = tl.load(chunk_index + chunk) * BLOCK + tl.arange(0, BLOCK)
    if found_inf is not None:  # a skipped step has no elements: it keeps everything and adds nothing
        size = tl.where(tl.load(found_inf) != 0, 0, size)
    ok = j < size
    there = _from_first(geometry, n, i, j)
    gradient = tl.load(addresses + n + i)
    p = tl.load(tl.load(addresses + i).to(tl.pointer_type(DTYPE)) + there, mask=ok, other=0.0)
    g = tl.load(gradient.to(tl.pointer_type(DTYPE)) + there, mask=ok & (gradient != 0), other=0.0)
    x0 = tl.load(start + place + j, mask=ok, other=0.0)
    g = g.to(tl.float32)
    if grad_scale is not None:
        g = tl.div_rn(g, scale)
    force = tl.where(tl.abs(g) < float("inf"), g, 0.0) * rate  # the comparison is false for NaN
    s = tl.load(impulse + place + j, mask=ok, other=0.0)
    tl.store(impulse + place + j, s * keep + force * weight, mask=ok)
    work = (p.to(tl.float32) - x0.to(tl.float32)) * force
    tl.store(partials + chunk, tl.sum(work.to(tl.float64)))


@jit
def work_kernel(
    partials,
    first_chunk,
    last_chunk,
    weights,
    found_inf,
    done,
    BLOCK: tl.constexpr,
) -> None:
    """Update N with one layer's work, adding its parts in an order that depends only on its size."""
    i = tl.program_id(0)
    start = tl.load(first_chunk + i)
    end = tl.load(last_chunk + i)
    total = tl.full([BLOCK], 0.0, tl.float64)
    for low in range(start, end, BLOCK):
        at = low + tl.arange(0, BLOCK)
        total += tl.load(partials + at, mask=at < end, other=0.0)
    was = tl.load(done + i)
    now = was * tl.load(weights) - tl.load(weights + 1) * tl.sum(total)
    if found_inf is not None:
        now = tl.where(tl.load(found_inf) == 0, now, was)
    tl.store(done + i, now)


@jit
def distance_kernel(
    addresses,
    geometry,
    chunk_tensor,
    chunk_index,
    start,
    impulse,
    partials,
    n,
    n_chunks,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write a block's part of the squared displacement and, in the second row, of the absolute impulse."""
    chunk = tl.program_id(0)
    i = tl.load(chunk_tensor + chunk)
    size = tl.load(geometry + i).to(tl.int32)
    place = tl.load(geometry + 3 * n + i)
    j = tl.load(chunk_index + chunk) * BLOCK + tl.arange(0, BLOCK)
    ok = j < size
    there = _from_first(geometry, n, i, j)
    p = tl.load(tl.load(addresses + i).to(tl.pointer_type(DTYPE)) + there, mask=ok, other=0.0)
    x0 = tl.load(start + place + j, mask=ok, other=0.0)
    away = p.to(tl.float32) - x0.to(tl.float32)
    tl.store(partials + chunk, tl.sum((away * away).to(tl.float64)))
    if impulse is not None:
        s = tl.load(impulse + place + j, mask=ok, other=0.0)
        tl.store(partials + n_chunks + chunk, tl.sum(tl.abs(s).to(tl.float64)))
