"""Device code that averages the sums of a step on the device, launched by ``triton.py``."""

from __future__ import annotations

from thermoopt.kernels.triton_kernels import IMPORT_ERROR, jit

if IMPORT_ERROR is None:
    import triton.language as tl

__all__ = ["account_kernel"]


@jit
def _average(table, n_layers, row, column, q, x, ok) -> None:
    """Update the running average of one number per layer."""
    at = table + row * n_layers + column
    tl.store(at, q * tl.load(at, mask=ok, other=0.0) + (1 - q) * x, mask=ok)


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
        for k in tl.static_range(14):
            _average(table, n_layers, k, c, q, tl.load(s + k, mask=ok, other=0.0), ok)
        # the terms of linear_sums() in thermoopt/physics: the definitions stand there
        apart = 1 - n0
        nothing = tl.where(b1 == 0, float("nan"), 0.0)
        noise = tl.where(apart != 0, gain * (sv - mu) / tl.where(apart != 0, apart, 1.0), nothing)
        with_g = (1 - power) * a
        fresh = (1 - b1) * b
        with_m = (1 - power) * (1 - power) * mu - (1 - b1) * (2 * with_g - fresh)
        _average(table, n_layers, 14, c, q, d * n0, ok)
        _average(table, n_layers, 15, c, q, energy * n0, ok)
        _average(table, n_layers, 16, c, q, b * gain, ok)
        _average(table, n_layers, 17, c, q, noise, ok)
        _average(table, n_layers, 18, c, q, (a - noise) * (a - noise), ok)
        _average(table, n_layers, 19, c, q, tl.where(t > 1, with_g - fresh, 0.0), ok)
        _average(table, n_layers, 20, c, q, tl.where(t > 1, tl.maximum(with_m, 0.0), 0.0), ok)
        # weight, sum of squared weights, last step, and the rates of the step
        _average(table, n_layers, 21, c, q, 1.0, ok)
        weight2 = table + 22 * n_layers + c
        old = tl.load(weight2, mask=ok, other=0.0)
        tl.store(weight2, q * q * old + (1 - q) * (1 - q), mask=ok)
        tl.store(table + 23 * n_layers + c, number, mask=ok)
        tl.store(table + 24 * n_layers + c, tl.load(row + 12, mask=ok, other=0.0), mask=ok)
        tl.store(table + 25 * n_layers + c, tl.load(row + 13, mask=ok, other=0.0), mask=ok)
        tl.store(table + 26 * n_layers + c, tl.load(row + 4, mask=ok, other=0.0), mask=ok)
