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

COUNTS = ("n", "first", "n_chunks", "n_layers")
"""Parameters of kernels that differ between optimizers, and with the tensors that have a gradient."""

__all__ = [
    "COUNTS",
    "IMPORT_ERROR",
    "INTERPRETED",
    "adamw_kernel",
    "jit",
    "reduce_kernel",
    "settings_kernel",
]


def jit(kernel: Callable[..., None]) -> Any:
    """Compile a kernel when it is first launched; without Triton, leave it as it is.

    One kernel serves any number of tensors and chunks: by itself Triton compiles another for a number that
    is 1, and for one that 16 divides.
    """
    return kernel if IMPORT_ERROR else triton.jit(kernel, do_not_specialize=list(COUNTS))


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
def _quarters(x, N: tl.constexpr):
    """Cut a block into the first, second, third and fourth of every four neighbours, all in one thread."""
    a, b = tl.split(tl.reshape(x, (N // 4, 2, 2)))
    a0, a1 = tl.split(a)
    b0, b1 = tl.split(b)
    return a0, a1, b0, b1


@jit
def _dot(total, x, y, N: tl.constexpr):
    """Add the products of two blocks to a total of a quarter of their size."""
    x0, x1, x2, x3 = _quarters(x, N)
    y0, y1, y2, y3 = _quarters(y, N)
    return total + tl.fma(x3, y3, tl.fma(x2, y2, tl.fma(x1, y1, x0 * y0)))


@jit
def _plus(total, x, N: tl.constexpr):
    """Add a block to a total of a quarter of its size."""
    x0, x1, x2, x3 = _quarters(x, N)
    return total + ((x0 + x1) + (x2 + x3))


@jit
def _columns(a, b, c, d, e, f, g, h, i, j, k, l, m, n, N: tl.constexpr):  # noqa: E741
    """Put 14 totals side by side, ``[N, 16]`` (the last two columns repeat the first), added at once."""
    even = tl.join(tl.join(tl.join(a, i), tl.join(e, m)), tl.join(tl.join(c, k), tl.join(g, a)))
    odd = tl.join(tl.join(tl.join(b, j), tl.join(f, n)), tl.join(tl.join(d, l), tl.join(h, b)))
    return tl.reshape(tl.join(even, odd), (N, 16))


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
    """Update one chunk of one tensor (unless ``DRY``) and write its partial sums, column by column.

    The sums are those of raw moments and without the sign of ``maximize``; :func:`reduce_kernel` corrects
    them. Each thread adds four neighbours at once, which leaves it one register a sum; the sums of all
    threads are added in one go.
    """
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
    inverse2 = tl.load(row + 7).to(tl.float32)
    root2 = tl.load(row + 8).to(tl.float32)
    eps64 = tl.load(row + 9)
    eps = eps64.to(tl.float32)
    # the least normal number keeps 0 / 0 out of the sums where eps is 0
    eps_squared = tl.maximum((eps64 * eps64).to(tl.float32), 1.1754943508222875e-38)
    rest1 *= tl.load(row + 10).to(tl.float32)  # the sign
    scale = 1.0
    if grad_scale is not None:
        scale = tl.load(grad_scale).to(tl.float32)
    # a skipped step has no elements
    start = tl.load(chunk_index + chunk).to(tl.int64) * CHUNK
    end = tl.minimum(start + CHUNK, tl.load(numels + i))
    end = tl.where(tl.load(row + 11) != 0, end, start)
    if MEASURE:
        s_a = tl.full([BLOCK // 4], 0.0, tl.float32)
        s_b = tl.full([BLOCK // 4], 0.0, tl.float32)
        s_uu = tl.full([BLOCK // 4], 0.0, tl.float32)
        s_tu = tl.full([BLOCK // 4], 0.0, tl.float32)
        s_tt = tl.full([BLOCK // 4], 0.0, tl.float32)
        s_mu = tl.full([BLOCK // 4], 0.0, tl.float32)
        s_sv = tl.full([BLOCK // 4], 0.0, tl.float32)
        s_gg = tl.full([BLOCK // 4], 0.0, tl.float32)
        s_gt = tl.full([BLOCK // 4], 0.0, tl.float32)
        s_v = tl.full([BLOCK // 4], 0.0, tl.float32)
        s_m2 = tl.full([BLOCK // 4], 0.0, tl.float32)
        s_c = tl.full([BLOCK // 4], 0.0, tl.float32)
        s_n1 = tl.full([BLOCK // 4], 0.0, tl.float32)
        s_d = tl.full([BLOCK // 4], 0.0, tl.float32)
    # offsets of a chunk fit 32 bits, wherever it lies in its tensor
    left = (end - start).to(tl.int32)
    p_ptr += start
    m_ptr += start
    v_ptr += start
    x_ptr += start
    g_ptr += start
    for low in range(0, left, BLOCK):
        at = low + tl.arange(0, BLOCK)
        ok = at < left
        # only the last block needs its mask: a mask of unknown length would forbid wide loads
        x = tl.full([BLOCK], 0.0, DTYPE)
        if low + BLOCK <= left:
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
        # moments
        m = tl.fma(m.to(tl.float32), beta1, rest1 * g)
        fresh = rest2 * g * g
        v = tl.fma(v.to(tl.float32), beta2, fresh)
        top = v
        if AMSGRAD:
            x = tl.maximum(x.to(tl.float32), v)
            top = x
        # update; a lane past the end divides by 1
        if DTYPE == tl.float32:
            below = tl.where(ok, tl.fma(tl.sqrt_rn(top), root2, eps), 1.0)
            pre = tl.div_rn(1.0, below)
        else:  # errors of 2**-22 vanish in what is stored, and cost a third of the instructions less
            below = tl.where(ok, tl.fma(tl.sqrt(top), root2, eps), 1.0)
            pre = 1.0 / below
        w = m * pre
        new = tl.fma(p, -shrink, p)
        new = tl.fma(w, -step_size, new)
        if not DRY:
            if low + BLOCK <= left:
                tl.store(p_ptr + at, new)
                tl.store(m_ptr + at, m)
                tl.store(v_ptr + at, v)
                if AMSGRAD:
                    tl.store(x_ptr + at, x)
                if grad_scale is not None:
                    tl.store(g_ptr + at, g)
            else:
                tl.store(p_ptr + at, new, mask=ok)
                tl.store(m_ptr + at, m, mask=ok)
                tl.store(v_ptr + at, v, mask=ok)
                if AMSGRAD:
                    tl.store(x_ptr + at, x, mask=ok)
                if grad_scale is not None:
                    tl.store(g_ptr + at, g, mask=ok)
        if MEASURE:
            scaled = g * pre
            s_a = _dot(s_a, g, w, BLOCK)
            s_b = _dot(s_b, g, scaled, BLOCK)
            s_uu = _dot(s_uu, w, w, BLOCK)
            s_tu = _dot(s_tu, p, w, BLOCK)
            s_tt = _dot(s_tt, p, p, BLOCK)
            s_mu = _dot(s_mu, m, w, BLOCK)
            s_sv = _dot(s_sv, v, pre, BLOCK)
            s_gg = _dot(s_gg, g, g, BLOCK)
            s_gt = _dot(s_gt, g, p, BLOCK)
            s_v = _plus(s_v, v, BLOCK)
            s_m2 = _dot(s_m2, m, m, BLOCK)
            s_c = _plus(s_c, fresh / tl.fma(v, inverse2, eps_squared), BLOCK)
            s_n1 = _plus(s_n1, tl.abs(scaled), BLOCK)
            s_d = _plus(s_d, (v > 0).to(tl.float32), BLOCK)
    if MEASURE:
        # the order of Sum; a column is contiguous, so that its reduction reads it whole
        totals = _columns(
            s_a, s_b, s_uu, s_tu, s_tt, s_mu, s_sv, s_gg, s_gt, s_v, s_m2, s_c, s_n1, s_d, BLOCK // 4
        )
        column = tl.arange(0, 16)
        place = partials + chunk + column.to(tl.int64) * n_chunks
        tl.store(place, tl.sum(totals, axis=0), mask=column < 14)


@jit
def _correction(settings, i, column):
    """Return what turns a column of :func:`adamw_kernel` into that of ``Sum``: bias corrections and sign."""
    row = settings + i * 16
    inverse1 = tl.load(row + 6)
    inverse2 = tl.load(row + 7)
    sign = tl.load(row + 10)
    out = tl.where((column == 2) | (column == 5) | (column == 10), inverse1 * inverse1, 1.0)
    out = tl.where((column == 6) | (column == 9), inverse2, out)
    out = tl.where(column == 11, 1 / tl.load(row + 5), out)
    out = tl.where((column == 0) | (column == 3), inverse1, out)
    return tl.where((column == 0) | (column == 8), out * sign, out)


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
    BLOCK: tl.constexpr,
) -> None:
    """Add one column of partial sums of one tensor in float64, in an order that depends on its size only.

    With ``settings`` the sums are corrected. ``flags[0]`` becomes 1 if one of them is not finite,
    ``flags[1]`` if a tensor has a gradient or an lr.
    """
    i = tl.program_id(0)
    column = tl.program_id(1)
    start = tl.load(first_chunk + i)
    end = tl.load(last_chunk + i)
    base = partials + column.to(tl.int64) * n_chunks
    total = tl.full([BLOCK], 0.0, tl.float64)
    for low in range(start, end, BLOCK):
        at = low + tl.arange(0, BLOCK)
        total += tl.load(base + at, mask=at < end, other=0.0).to(tl.float64)
    result = tl.sum(total)
    if settings is not None:
        result *= _correction(settings, i, column)
    tl.store(out + i * COLUMNS + column, result)
    if flags is not None:  # whoever writes one writes a 1
        size = tl.abs(result)
        tl.store(flags, 1, mask=(size < float("inf")) == 0)  # the comparison is false for NaN
        lr = tl.load(settings + i * 16 + 12)
        tl.store(flags + 1, 1, mask=(column == 7) & ((size != 0) | (lr != 0)))


INTERPRETED = IMPORT_ERROR is None and not isinstance(adamw_kernel, triton.JITFunction)
"""Whether Triton's interpreter runs these kernels, on CPU tensors (``TRITON_INTERPRET=1`` at import)."""
