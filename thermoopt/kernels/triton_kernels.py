"""Device code of one AdamW step, its sums and their averages: Triton kernels that ``triton.py`` launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

IMPORT_ERROR: str | None = None
try:
    import triton
    import triton.language as tl
except ImportError as error:
    IMPORT_ERROR = str(error)

__all__ = [
    "IMPORT_ERROR",
    "INTERPRETED",
    "adamw_kernel",
    "jit",
    "reduce_kernel",
    "settings_kernel",
]


def jit(kernel: Callable[..., None]) -> Any:
    """Compile a kernel when it is first launched; without Triton, leave it as it is."""
    return kernel if IMPORT_ERROR else triton.jit(kernel)


@jit
def settings_kernel(
    addresses,
    out,
    found_inf,
    lr,
    lr_stride,
    factor,
    factor_stride,
    decay,
    decay_stride,
    beta1,
    beta1_stride,
    beta2,
    beta2_stride,
    eps,
    eps_stride,
    sign,
    sign_stride,
    run,
    flags,
    n,
    DRY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Count the steps and write the 16 float64 settings of each tensor (a stride of 0 repeats one number).

    With ``run`` the step of the run is counted too, and the flags of :func:`reduce_kernel` are cleared.
    """
    if run is not None:
        if tl.program_id(0) == 0:
            tl.store(run, tl.load(run) + 1)
            tl.store(flags, 0)
            tl.store(flags + 1, 0)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = i < n
    lr_ = tl.load(lr + i * lr_stride, mask=ok, other=0.0).to(tl.float64)
    lr_ *= tl.load(factor + i * factor_stride, mask=ok, other=0.0).to(tl.float64)
    decay_ = tl.load(decay + i * decay_stride, mask=ok, other=0.0).to(tl.float64)
    b1 = tl.load(beta1 + i * beta1_stride, mask=ok, other=0.5).to(tl.float64)
    b2 = tl.load(beta2 + i * beta2_stride, mask=ok, other=0.5).to(tl.float64)
    eps_ = tl.load(eps + i * eps_stride, mask=ok, other=1.0).to(tl.float64)
    sign_ = tl.load(sign + i * sign_stride, mask=ok, other=1.0).to(tl.float64)
    # count the step, unless an infinity was found
    go = tl.full([BLOCK], 1.0, tl.float32)
    if found_inf is not None:
        go = tl.where(tl.load(found_inf) != 0, 0.0, go)
    step = tl.load(addresses + 4 * n + i, mask=ok, other=0).to(tl.pointer_type(tl.float32))
    t = tl.load(step, mask=ok, other=0.0) + go
    if not DRY:
        tl.store(step, t, mask=ok)
    # bias corrections: beta**t = exp(t log beta); a beta of 0 has no logarithm, a skipped first step no t
    t = tl.maximum(t, 1.0).to(tl.float64)
    tiny = 1e-300
    c1 = 1 - tl.where(b1 > 0, tl.exp(t * tl.log(tl.maximum(b1, tiny))), 0.0)
    c2 = 1 - tl.where(b2 > 0, tl.exp(t * tl.log(tl.maximum(b2, tiny))), 0.0)
    row = out + i * 16
    tl.store(row, lr_ / c1, mask=ok)
    tl.store(row + 1, lr_ * decay_, mask=ok)
    tl.store(row + 2, b1, mask=ok)
    tl.store(row + 3, 1 - b1, mask=ok)
    tl.store(row + 4, b2, mask=ok)
    tl.store(row + 5, 1 - b2, mask=ok)
    tl.store(row + 6, 1 / c1, mask=ok)
    tl.store(row + 7, 1 / c2, mask=ok)
    tl.store(row + 8, tl.sqrt(1 / c2), mask=ok)
    tl.store(row + 9, eps_, mask=ok)
    tl.store(row + 10, sign_, mask=ok)
    tl.store(row + 11, go, mask=ok)
    tl.store(row + 12, lr_, mask=ok)
    tl.store(row + 13, decay_, mask=ok)
    tl.store(row + 14, t, mask=ok)


@jit
def adamw_kernel(
    addresses,
    numels,
    chunk_tensor,
    chunk_index,
    settings,
    grad_scale,
    partials,
    n,
    first,
    n_chunks,
    DTYPE: tl.constexpr,
    AMSGRAD: tl.constexpr,
    MEASURE: tl.constexpr,
    ALIGNED: tl.constexpr,
    DRY: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Update one chunk of one tensor (unless ``DRY``) and write its partial sums, column by column."""
    chunk = first + tl.program_id(0)
    i = tl.load(chunk_tensor + chunk)
    p_ptr = tl.load(addresses + i).to(tl.pointer_type(DTYPE))
    m_ptr = tl.load(addresses + n + i).to(tl.pointer_type(DTYPE))
    v_ptr = tl.load(addresses + 2 * n + i).to(tl.pointer_type(DTYPE))
    x_ptr = tl.load(addresses + 3 * n + i).to(tl.pointer_type(DTYPE))
    g_ptr = tl.load(addresses + 5 * n + i).to(tl.pointer_type(DTYPE))
    if ALIGNED:  # lets a thread move 16 bytes at a time
        p_ptr = tl.multiple_of(p_ptr, 16)
        m_ptr = tl.multiple_of(m_ptr, 16)
        v_ptr = tl.multiple_of(v_ptr, 16)
        x_ptr = tl.multiple_of(x_ptr, 16)
        g_ptr = tl.multiple_of(g_ptr, 16)
    row = settings + i * 16
    step_size = tl.load(row).to(tl.float32)
    shrink = tl.load(row + 1).to(tl.float32)
    beta1 = tl.load(row + 2).to(tl.float32)
    rest1 = tl.load(row + 3).to(tl.float32)
    beta2 = tl.load(row + 4).to(tl.float32)
    rest2 = tl.load(row + 5).to(tl.float32)
    inverse1 = tl.load(row + 6).to(tl.float32)
    inverse2 = tl.load(row + 7).to(tl.float32)
    root2 = tl.load(row + 8).to(tl.float32)
    eps64 = tl.load(row + 9)
    eps = eps64.to(tl.float32)
    eps_squared = (eps64 * eps64).to(tl.float32)
    sign = tl.load(row + 10).to(tl.float32)
    scale = 1.0
    if grad_scale is not None:
        scale = tl.load(grad_scale).to(tl.float32)
    # a skipped step has no elements
    start = tl.load(chunk_index + chunk).to(tl.int64) * CHUNK
    end = tl.minimum(start + CHUNK, tl.load(numels + i))
    end = tl.where(tl.load(row + 11) != 0, end, start)
    if MEASURE:
        s_a = tl.full([BLOCK], 0.0, tl.float32)
        s_b = tl.full([BLOCK], 0.0, tl.float32)
        s_uu = tl.full([BLOCK], 0.0, tl.float32)
        s_tu = tl.full([BLOCK], 0.0, tl.float32)
        s_tt = tl.full([BLOCK], 0.0, tl.float32)
        s_mu = tl.full([BLOCK], 0.0, tl.float32)
        s_sv = tl.full([BLOCK], 0.0, tl.float32)
        s_gg = tl.full([BLOCK], 0.0, tl.float32)
        s_gt = tl.full([BLOCK], 0.0, tl.float32)
        s_v = tl.full([BLOCK], 0.0, tl.float32)
        s_m2 = tl.full([BLOCK], 0.0, tl.float32)
        s_c = tl.full([BLOCK], 0.0, tl.float32)
        s_n1 = tl.full([BLOCK], 0.0, tl.float32)
        s_d = tl.full([BLOCK], 0.0, tl.float32)
    for low in range(start, end, BLOCK):
        at = low + tl.arange(0, BLOCK)
        ok = at < end
        # only the last block needs its mask: a mask of unknown length would forbid wide loads
        x = tl.full([BLOCK], 0.0, DTYPE)
        if low + BLOCK <= end:
            p = tl.load(p_ptr + at)
            g = tl.load(g_ptr + at)
            m = tl.load(m_ptr + at)
            v = tl.load(v_ptr + at)
            if AMSGRAD:
                x = tl.load(x_ptr + at)
        else:
            p = tl.load(p_ptr + at, mask=ok, other=0.0)
            g = tl.load(g_ptr + at, mask=ok, other=0.0)
            m = tl.load(m_ptr + at, mask=ok, other=0.0)
            v = tl.load(v_ptr + at, mask=ok, other=0.0)
            if AMSGRAD:
                x = tl.load(x_ptr + at, mask=ok, other=0.0)
        p = p.to(tl.float32)
        g = g.to(tl.float32)
        if grad_scale is not None:
            g = tl.div_rn(g, scale)
        unscaled = g
        g = g * sign
        # moments
        m = tl.fma(m.to(tl.float32), beta1, rest1 * g)
        v = tl.fma(v.to(tl.float32), beta2, rest2 * g * g)
        top = v
        if AMSGRAD:
            x = tl.maximum(x.to(tl.float32), v)
            top = x
        # update; a lane past the end divides by 1
        below = tl.where(ok, tl.fma(tl.sqrt_rn(top), root2, eps), 1.0)
        pre = tl.div_rn(1.0, below)
        new = tl.fma(p, -shrink, p)
        new = tl.fma(pre, -step_size * m, new)
        if not DRY:
            if low + BLOCK <= end:
                tl.store(p_ptr + at, new)
                tl.store(m_ptr + at, m)
                tl.store(v_ptr + at, v)
                if AMSGRAD:
                    tl.store(x_ptr + at, x)
                if grad_scale is not None:
                    tl.store(g_ptr + at, unscaled)
            else:
                tl.store(p_ptr + at, new, mask=ok)
                tl.store(m_ptr + at, m, mask=ok)
                tl.store(v_ptr + at, v, mask=ok)
                if AMSGRAD:
                    tl.store(x_ptr + at, x, mask=ok)
                if grad_scale is not None:
                    tl.store(g_ptr + at, unscaled, mask=ok)
        if MEASURE:
            mh = m * inverse1
            vh = v * inverse2
            u = mh * pre
            seen = vh > 0
            s_a = tl.fma(g, u, s_a)
            s_b = tl.fma(g * g, pre, s_b)
            s_uu = tl.fma(u, u, s_uu)
            s_tu = tl.fma(p, u, s_tu)
            s_tt = tl.fma(p, p, s_tt)
            s_mu = tl.fma(mh, u, s_mu)
            s_sv = tl.fma(vh, pre, s_sv)
            s_gg = tl.fma(g, g, s_gg)
            s_gt = tl.fma(g, p, s_gt)
            s_v += vh
            s_m2 = tl.fma(mh, mh, s_m2)
            s_c += tl.where(seen, g * g / tl.where(seen, vh + eps_squared, 1.0), 0.0)
            s_n1 = tl.fma(tl.abs(g), pre, s_n1)
            s_d += seen.to(tl.float32)
    if MEASURE:
        # the order of Sum; a column is contiguous, so that its reduction reads it whole
        column = partials + chunk
        tl.store(column, tl.sum(s_a))
        column += n_chunks
        tl.store(column, tl.sum(s_b))
        column += n_chunks
        tl.store(column, tl.sum(s_uu))
        column += n_chunks
        tl.store(column, tl.sum(s_tu))
        column += n_chunks
        tl.store(column, tl.sum(s_tt))
        column += n_chunks
        tl.store(column, tl.sum(s_mu))
        column += n_chunks
        tl.store(column, tl.sum(s_sv))
        column += n_chunks
        tl.store(column, tl.sum(s_gg))
        column += n_chunks
        tl.store(column, tl.sum(s_gt))
        column += n_chunks
        tl.store(column, tl.sum(s_v))
        column += n_chunks
        tl.store(column, tl.sum(s_m2))
        column += n_chunks
        tl.store(column, tl.sum(s_c))
        column += n_chunks
        tl.store(column, tl.sum(s_n1))
        column += n_chunks
        tl.store(column, tl.sum(s_d))


@jit
def reduce_kernel(
    partials,
    first_chunk,
    last_chunk,
    out,
    settings,
    flags,
    n_chunks,
    COLUMNS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Add the partial sums of one tensor in float64, in an order that depends on its size only.

    ``flags[0]`` becomes 1 if one of them is not finite, ``flags[1]`` if the tensor has a gradient or an lr.
    """
    i = tl.program_id(0)
    start = tl.load(first_chunk + i)
    end = tl.load(last_chunk + i)
    column = tl.arange(0, LANES)
    there = column < COLUMNS
    base = partials + column.to(tl.int64) * n_chunks
    total = tl.full([LANES, BLOCK], 0.0, tl.float64)
    for low in range(start, end, BLOCK):
        at = low + tl.arange(0, BLOCK)
        mask = there[:, None] & (at < end)[None, :]
        total += tl.load(base[:, None] + at[None, :], mask=mask, other=0.0).to(tl.float64)
    sums = tl.sum(total, axis=1)
    tl.store(out + i * COLUMNS + column, sums, mask=there)
    if flags is not None:
        size = tl.abs(sums)
        strange = tl.where(there & ~(size < float("inf")), 1, 0)  # the comparison is false for NaN
        moving = tl.sum(tl.where(column == 7, size, 0.0)) + tl.abs(tl.load(settings + i * 16 + 12))
        tl.atomic_max(flags, tl.max(strange))
        tl.atomic_max(flags + 1, tl.where(moving != 0, 1, 0))


INTERPRETED = IMPORT_ERROR is None and not isinstance(adamw_kernel, triton.JITFunction)
"""Whether Triton's interpreter runs these kernels, on CPU tensors (``TRITON_INTERPRET=1`` at import)."""
