"""Averaging a step's sums on their device, in a number of launches that does not grow with the layers.

Third implementation of :meth:`Meter.update`, besides ``native.c`` and Triton's ``account_kernel``: for
sums computed by torch operations. Nothing waits for the device, so a captured graph averages too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thermoopt.physics.sums import Sum

__all__ = ["CAUSES", "RUN", "average_in", "count"]

RUN = 8
"""Counters of a run on its device, float64: step, readings, last step averaged, steps skipped by cause,
and the share that an average keeps per step."""

CAUSES = ("nonfinite", "found_inf", "dry", "no_gradients")
"""Causes to skip a step, in the order of their counters, which begin at 3."""

_NONFINITE, _FOUND_INF, _DRY = 3, 4, 5
_WEIGHT = 21


@torch.no_grad()
def count(run: Tensor) -> None:
    """Count a step of the run."""
    run[0].add_(1)


@torch.no_grad()
def average_in(
    table: Tensor,
    run: Tensor,
    index: Tensor | None,
    sums: Tensor,
    constants: Tensor,
    *,
    found_inf: Tensor | None = None,
    missing: Tensor | None = None,
) -> None:
    """Average the sums of the last counted step into a table, or count the reason for leaving them out.

    Args:
        table: ``[STATE_ROWS, n_layers]`` as a :class:`~thermoopt.account.meter.Meter` keeps it, float64.
        run: ``[RUN]``.
        index: ``[k]`` layers measured, each once; None for all in order.
        sums: ``[k, len(Sum)]``, float64.
        constants: ``[5, k]``, float64: lr, weight decay, beta1, beta2, and the tensors' own step counts.
        found_inf: a GradScaler's flag.
        missing: ``[COLUMNS]`` columns for which the optimizer has no sums; they stay 0.
    """
    lr, wd, beta1, beta2, t = constants
    state = table if index is None else table.index_select(1, index)
    number, keep = run[0], run[7]
    q = keep ** (number - state[_WEIGHT + 2])
    new = _extended(sums, beta1, t)
    if missing is not None:
        new = new.masked_fill(missing[:, None], 0.0)
    p = 1 - q
    taken = torch.cat(
        [
            state[:_WEIGHT] * q + new * p,
            (state[_WEIGHT] * q + p)[None],
            (state[_WEIGHT + 1] * q**2 + p**2)[None],
            number.expand_as(q)[None],
            torch.stack([lr, wd, beta2]),
        ]
    )
    finite = torch.isfinite(sums).all()
    moving = (lr != 0).any() | (sums[:, Sum.GG] != 0).any()
    stop = torch.zeros_like(finite) if found_inf is None else (found_inf != 0).any()
    go = finite & moving & ~stop
    state = torch.where(go, taken, state)
    if index is None:
        table.copy_(state)
    else:
        table.index_copy_(1, index, state)
    # counters: a dry step does not count as a step
    dry = finite & ~moving & ~stop
    none = torch.zeros_like(go)
    run[:7].add_(torch.stack([none, go, none, ~finite & ~stop, stop, dry, none]).to(run))
    run[2] = torch.where(go, number, run[2])
    run[0].sub_(dry.to(run))


def _extended(sums: Tensor, beta1: Tensor, t: Tensor) -> Tensor:
    """The sums and the terms of ``linear_sums`` in thermoopt/physics, ``[COLUMNS, k]``: defined there."""
    s = sums.T
    power = beta1**t
    n0 = (1 - beta1) * (1 + power) / ((1 + beta1) * (1 - power))
    gain = (1 - beta1) / (1 - power)
    apart = 1 - n0
    nothing = torch.where(beta1 == 0, torch.nan, 0.0).to(s)
    noise = gain * (s[Sum.SV] - s[Sum.MU]) / torch.where(apart != 0, apart, 1.0)
    noise = torch.where(apart != 0, noise, nothing)
    with_g, fresh = (1 - power) * s[Sum.A], (1 - beta1) * s[Sum.B]
    with_m = (1 - power) ** 2 * s[Sum.MU] - (1 - beta1) * (2 * with_g - fresh)
    under_way = t > 1
    more = [
        s[Sum.D] * n0,
        s[Sum.C] * n0,
        s[Sum.B] * gain,
        noise,
        (s[Sum.A] - noise) ** 2,
        torch.where(under_way, with_g - fresh, 0.0),
        torch.where(under_way, with_m.clamp_min(0.0), 0.0),
    ]
    return torch.cat([s, torch.stack(more)])
