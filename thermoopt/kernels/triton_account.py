"""Device code that averages the sums of a step on the device, launched by ``triton.py``."""

from __future__ import annotations

from thermoopt.kernels.triton_kernels import IMPORT_ERROR, jit

if IMPORT_ERROR is None:
    import triton.language as tl

__all__ = ["account_kernel"]


@jit
def account_kernel(
    sums,
    settings,
    table,
    columns,
    run,
    flags,
    found_inf,
    n,
    n_layers,
    BLOCK: tl.constexpr,
) -> None:
    """Average a step's sums into the table, as ``Meter.update`` does, or count the reason not to.

    ``run`` is ``[8]``: step, readings, last step averaged, steps skipped for sums that are not finite,
    for ``found_inf``, for a dry step and for missing gradients, and the share an average keeps per step.
    """
    strange = tl.load(flags) != 0
    still = tl.load(flags + 1) == 0
    stop = tl.load(flags) < 0  # never
    if found_inf is not None:
        stop = tl.load(found_inf) != 0
    number = tl.load(run)
    if stop | strange | still:
        if tl.program_id(0) == 0:
            cause = tl.where(stop, 4, tl.where(strange, 3, 5))
            tl.store(run + cause, tl.load(run + cause) + 1)
            # a dry step is not counted: take back its count
            tl.store(run, number - tl.where(cause == 5, 1.0, 0.0))
    else:
        if tl.program_id(0) == 0:
            tl.store(run + 1, tl.load(run + 1) + 1)
            tl.store(run + 2, number)
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        ok = i < n
        c = tl.load(columns + i, mask=ok, other=0)
        row = settings + i * 16
        b1 = tl.load(row + 2, mask=ok, other=0.5)
        t = tl.load(row + 14, mask=ok, other=2.0)
        tiny = 1e-300
        power = tl.where(b1 > 0, tl.exp(t * tl.log(tl.maximum(b1, tiny))), 0.0)
        power = tl.where(t == 1, b1, power)  # n0 is then exactly 1
        n0 = (1 - b1) * (1 + power) / ((1 + b1) * (1 - power))
        gain = (1 - b1) / (1 - power)
        keep = tl.load(run + 7)
        gap = number - tl.load(table + 23 * n_layers + c, mask=ok, other=0.0)
        q = tl.where(keep > 0, tl.exp(gap * tl.log(tl.maximum(keep, tiny))), 0.0)
        s = sums + i * 14
        a = tl.load(s, mask=ok, other=0.0)
        b = tl.load(s + 1, mask=ok, other=0.0)
        mu = tl.load(s + 5, mask=ok, other=0.0)
        sv = tl.load(s + 6, mask=ok, other=0.0)
        energy = tl.load(s + 11, mask=ok, other=0.0)
        d = tl.load(s + 13, mask=ok, other=0.0)
        # everything is read before anything is written: a read after a write would wait for it
        rows = tl.arange(0, 16)[:, None]
        both = (rows < 14) & ok[None, :]
        new = tl.load(s[None, :] + rows, mask=both, other=0.0)
        at = table + rows * n_layers + c[None, :]
        old = tl.load(at, mask=both, other=0.0)
        row14 = table + 14 * n_layers + c
        row15 = row14 + n_layers
        row16 = row15 + n_layers
        row17 = row16 + n_layers
        row18 = row17 + n_layers
        row19 = row18 + n_layers
        row20 = row19 + n_layers
        row21 = row20 + n_layers
        row22 = row21 + n_layers
        old14 = tl.load(row14, mask=ok, other=0.0)
        old15 = tl.load(row15, mask=ok, other=0.0)
        old16 = tl.load(row16, mask=ok, other=0.0)
        old17 = tl.load(row17, mask=ok, other=0.0)
        old18 = tl.load(row18, mask=ok, other=0.0)
        old19 = tl.load(row19, mask=ok, other=0.0)
        old20 = tl.load(row20, mask=ok, other=0.0)
        old21 = tl.load(row21, mask=ok, other=0.0)
        old22 = tl.load(row22, mask=ok, other=0.0)
        lr = tl.load(row + 12, mask=ok, other=0.0)
        wd = tl.load(row + 13, mask=ok, other=0.0)
        b2 = tl.load(row + 4, mask=ok, other=0.0)
        # the terms of linear_sums() in thermoopt/physics: the definitions stand there
        apart = 1 - n0
        nothing = tl.where(b1 == 0, float("nan"), 0.0)
        noise = tl.where(apart != 0, gain * (sv - mu) / tl.where(apart != 0, apart, 1.0), nothing)
        with_g = (1 - power) * a
        fresh = (1 - b1) * b
        with_m = (1 - power) * (1 - power) * mu - (1 - b1) * (2 * with_g - fresh)
        part = 1 - q
        tl.store(at, q[None, :] * old + part[None, :] * new, mask=both)
        tl.store(row14, q * old14 + part * (d * n0), mask=ok)
        tl.store(row15, q * old15 + part * (energy * n0), mask=ok)
        tl.store(row16, q * old16 + part * (b * gain), mask=ok)
        tl.store(row17, q * old17 + part * noise, mask=ok)
        tl.store(row18, q * old18 + part * ((a - noise) * (a - noise)), mask=ok)
        tl.store(row19, q * old19 + part * tl.where(t > 1, with_g - fresh, 0.0), mask=ok)
        tl.store(row20, q * old20 + part * tl.where(t > 1, tl.maximum(with_m, 0.0), 0.0), mask=ok)
        # weight, sum of squared weights, last step, and the rates of the step
        tl.store(row21, q * old21 + part, mask=ok)
        tl.store(row22, q * q * old22 + part * part, mask=ok)
        tl.store(row22 + n_layers, number, mask=ok)
        tl.store(row22 + 2 * n_layers, lr, mask=ok)
        tl.store(row22 + 3 * n_layers, wd, mask=ok)
        tl.store(row22 + 4 * n_layers, b2, mask=ok)
