r"""Pure functions from sums to physics: entropy production, its split, equilibrium, norm balance.

Symbols, everywhere: :math:`\eta` the effective learning rate, :math:`\lambda` the effective decoupled
weight decay, :math:`\alpha = 1-\eta\lambda`, :math:`U = \hat m/(\sqrt{\hat v}+\epsilon)` the update
direction, :math:`d` the number of elements that have ever had a gradient, ``[L]`` the unit of the loss.
The sums (``A``, ``B``, ``UU`` ...) are those of :class:`~thermoopt.physics.Sum`, already averaged
over steps: ratios are formed from averages of sums, never as averages of ratios.

Two stages keep groups and totals right. :func:`layer_terms` turns the averaged sums of each layer into
*extensive* terms, which add up over layers; :func:`quantities` forms every ratio after the addition.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermoopt.physics.sums import Sum

__all__ = [
    "COLUMNS",
    "TRACKED",
    "Linear",
    "Term",
    "columns_of",
    "layer_terms",
    "linear_sums",
    "norm_forecast",
    "null_update_energy",
]

Array = NDArray[np.float64]


class Linear(IntEnum):
    """Columns that a meter averages in addition to the sums, because their factor depends on the step count.

    They follow the ``len(Sum)`` sums, so ``Linear.NULL`` is the first index after ``Sum.D``.
    """

    NULL = len(Sum)
    """D * n0(t): ||U||**2 in pure noise, no unit."""
    CNULL = len(Sum) + 1
    """C * n0(t): ||U||**2 in noise of the present energy, no unit."""
    SELF = len(Sum) + 2
    """c1 (1 - beta1) B: the part of A due to the fresh gradient itself, [L/th]."""
    NOISE = len(Sum) + 3
    """c1 (1 - beta1) (SV - MU) / (1 - n0(t)): the part of SELF that is noise, [L/th]."""
    WORK2 = len(Sum) + 4
    """(A - NOISE)**2: second moment of the unclamped productive part, for its error, [L**2/th**2]."""
    GM = len(Sum) + 5
    """beta1 <g, P m'> with m' the raw first moment before the step, [L/th]."""
    MM = len(Sum) + 6
    """beta1**2 <m', P m'>, [L/th]."""


COLUMNS = len(Sum) + len(Linear)
"""Number of columns a meter averages."""

_FORMED_FROM = {
    Linear.NULL: {Sum.D},
    Linear.CNULL: {Sum.C},
    Linear.SELF: {Sum.B},
    Linear.NOISE: {Sum.SV, Sum.MU},
    Linear.WORK2: {Sum.A, Sum.SV, Sum.MU},
    Linear.GM: {Sum.A, Sum.B},
    Linear.MM: {Sum.A, Sum.B, Sum.MU},
}


def columns_of(sums: Collection[Sum]) -> NDArray[np.bool_]:
    """Return the mask of the columns that hold one of ``sums`` or are computed from one, ``[COLUMNS]``."""
    out = np.zeros(COLUMNS, dtype=bool)
    out[list(sums)] = True
    for column, parts in _FORMED_FROM.items():
        out[column] = not parts.isdisjoint(sums)
    return out


def null_update_energy(beta1: ArrayLike, t: ArrayLike) -> Array:
    r"""Mean squared update of one element in pure noise.

    .. math:: n_0(t) = \frac{(1-\beta_1)(1+\beta_1^t)}{(1+\beta_1)(1-\beta_1^t)}

    The variance of the bias-corrected first moment of unit-variance white noise; 1 at t = 1 and
    0.0526 for large t at beta1 = 0.9. Derived for this project.

    Args:
        beta1: decay of the first moment, in [0, 1).
        t: step count, at least 1.
    """
    beta1 = np.asarray(beta1, dtype=np.float64)
    return _null(beta1, np.power(beta1, t, dtype=np.float64))


def _null(beta1: Array, power: Array) -> Array:
    return (1 - beta1) * (1 + power) / ((1 + beta1) * (1 - power))


@np.errstate(all="ignore")  # values become infinite or NaN in a run that diverges
def linear_sums(sums: Array, beta1: Array, t: Array) -> Array:
    r"""Extend one step's sums by the terms whose factor depends on the step count.

    With :math:`c_1 = 1/(1-\beta_1^t)`, ``self`` is :math:`c_1(1-\beta_1)B`, and the noise in it comes from
    :math:`s^2 = (\hat v-\hat m^2)/(1-n_0(t))`, which is unbiased at every t >= 2 for gradients with a slowly
    drifting mean (the limit of its factor is :math:`(1+\beta_1)/(2\beta_1)`). At t = 1 moment and gradient
    are equal, so signal and noise cannot be separated: noise is 0. With beta1 = 0 they never can: NaN. The
    moment m' before the step is the moment after it minus the gradient's part,
    :math:`\beta_1 m' = m - (1-\beta_1) g`, so products with m' follow from A, B and MU.

    Args:
        sums: ``[len(Sum), n]``.
        beta1, t: ``[n]``, the first-moment decay and the step count of each tensor, t >= 1.

    Returns:
        ``[COLUMNS, n]``, linear in the gradients' second moments, so that averages over steps are meaningful.

    References:
        derived for this project.
    """
    power = beta1**t
    n0 = _null(beta1, power)
    gain = (1 - beta1) / (1 - power)
    out = np.empty((COLUMNS, sums.shape[1]))
    out[: len(Sum)] = sums
    np.multiply(sums[Sum.D], n0, out=out[Linear.NULL])
    np.multiply(sums[Sum.C], n0, out=out[Linear.CNULL])
    np.multiply(sums[Sum.B], gain, out=out[Linear.SELF])
    noise, apart = gain * (sums[Sum.SV] - sums[Sum.MU]), 1 - n0
    if apart.all():
        np.divide(noise, apart, out=out[Linear.NOISE])
    else:
        out[Linear.NOISE] = np.where(beta1 == 0, np.nan, 0.0)
        np.divide(noise, apart, out=out[Linear.NOISE], where=apart != 0)
    out[Linear.WORK2] = (sums[Sum.A] - out[Linear.NOISE]) ** 2
    # <g, P m> and <m, P m> without the gradient's own part; at t = 1 only rounding errors remain
    with_g, fresh, under_way = (1 - power) * sums[Sum.A], (1 - beta1) * sums[Sum.B], t > 1
    out[Linear.GM] = np.where(under_way, with_g - fresh, 0.0)
    with_m = (1 - power) ** 2 * sums[Sum.MU] - (1 - beta1) * (2 * with_g - fresh)
    out[Linear.MM] = np.where(under_way, np.maximum(with_m, 0.0), 0.0)
    return out


class Term(IntEnum):
    """Extensive terms of a layer: they add up over layers, and every quantity is a ratio of their sums."""

    SIGMA = 0
    SIGMA_SGD = 1
    D_ES = 2
    NOISE = 3
    MOMENTUM = 4
    WD = 5
    WD_ABS = 6
    WORK_VAR = 7
    PHI = 8
    PHI_STAR = 9
    THERMAL = 10
    UU = 11
    NULL = 12
    CNULL = 13
    N1 = 14
    D = 15
    GG = 16
    TT = 17
    STEP2 = 18
    SOURCE = 19
    PULL = 20
    FORECAST = 21
    NUMEL = 22
    LR_NUMEL = 23
    WD_NUMEL = 24
    B = 25
    GM = 26
    MM = 27
    RHO_DOT = 28
    RHO_NOW = 29
    RHO_BEFORE = 30
    DISTANCE = 31


TRACKED = (Term.RHO_DOT, Term.RHO_NOW, Term.RHO_BEFORE, Term.DISTANCE)
"""Terms that need extra memory: NaN unless an observer tracks them."""


@np.errstate(all="ignore")  # values become infinite or NaN in a run that diverges
def layer_terms(mean: Array, error2: Array, lr: Array, wd: Array, beta2: Array, numel: Array) -> Array:
    r"""Turn the averaged sums of each layer into extensive terms.

    .. math::
        \sigma = \eta A,\quad \mathrm{memory} = A - \mathrm{self},\quad
        d_eS = \eta(\mathrm{signal} + \max(\mathrm{memory}, 0)),\quad
        d_iS = \eta(\mathrm{noise} + \min(\mathrm{memory}, 0)) + \eta\lambda\langle g,\theta\rangle

    and :math:`d_eS + d_iS = \eta\langle g, U+\lambda\theta\rangle` to rounding. Noise is clamped to
    ``[0, self]`` here, after averaging, so that signal = self - noise is never negative.

    Args:
        mean: ``[COLUMNS, n]`` averaged sums (:func:`linear_sums`); n may stand for several axes.
        error2: ``[n]``, sum of the squared averaging weights; the variance of an average is this times the
            variance of one step.
        lr, wd, beta2: ``[n]`` effective learning rate and weight decay, second-moment decay.
        numel: ``[n]`` real elements of each layer.

    Returns:
        ``[len(Term), n]``; entropy terms in [L per step].

    References:
        sigma: force times flux; phi: arXiv 2605.21933; split, norm balance: derived for this project.
    """
    decayed = lr * wd
    alpha = 1 - decayed
    self_, a, uu, tt = mean[Linear.SELF], mean[Sum.A], mean[Sum.UU], mean[Sum.TT]
    noise = np.minimum(np.maximum(mean[Linear.NOISE], 0.0), np.maximum(self_, 0.0))
    memory, lr2, quarter = a - self_, lr**2, lr / 4
    source = lr2 * uu - 2 * alpha * lr * mean[Sum.TU]
    decay = decayed * mean[Sum.GT]
    out = np.empty((len(Term), *mean.shape[1:]))
    out[Term.SIGMA] = lr * a
    out[Term.SIGMA_SGD] = lr * mean[Sum.GG]
    out[Term.D_ES] = lr * (self_ - noise + np.maximum(memory, 0.0))
    out[Term.NOISE] = lr * noise
    out[Term.MOMENTUM] = lr * np.minimum(memory, 0.0)
    out[Term.WD] = decay
    out[Term.WD_ABS] = np.abs(decay)
    variance = np.maximum(mean[Linear.WORK2] - (a - mean[Linear.NOISE]) ** 2, 0.0)
    out[Term.WORK_VAR] = lr2 * variance * error2
    out[Term.PHI] = quarter * uu
    out[Term.PHI_STAR] = quarter * mean[Linear.NULL]
    out[Term.THERMAL] = quarter * mean[Sum.B]
    out[Term.UU] = uu
    out[Term.NULL] = mean[Linear.NULL]
    out[Term.CNULL] = mean[Linear.CNULL]
    out[Term.N1] = mean[Sum.N1]
    out[Term.D] = mean[Sum.D]
    out[Term.GG] = mean[Sum.GG]
    out[Term.TT] = tt
    out[Term.STEP2] = lr2 * uu
    out[Term.SOURCE] = source
    out[Term.PULL] = 2 * lr * wd * tt
    out[Term.FORECAST] = _forecast(tt, source, alpha, 1 / (1 - beta2))
    out[Term.NUMEL] = numel
    out[Term.LR_NUMEL] = lr * numel
    out[Term.WD_NUMEL] = wd * numel
    out[Term.B] = mean[Sum.B]
    out[Term.GM] = mean[Linear.GM]
    out[Term.MM] = mean[Linear.MM]
    out[TRACKED[0] : TRACKED[-1] + 1] = np.nan
    return out


@np.errstate(all="ignore")  # values become infinite or NaN in a run that diverges
def norm_forecast(norm2: ArrayLike, source: ArrayLike, alpha: ArrayLike, horizon: ArrayLike) -> Array:
    r"""Forecast of a squared norm under the present source and decay.

    .. math::
        \|\theta(t+n)\|^2 = \|\theta\|^2_{eq} + (\|\theta\|^2 - \|\theta\|^2_{eq})\,\alpha^{2n},
        \qquad \|\theta\|^2_{eq} = S/(1-\alpha^2)

    the solution of the exact balance :math:`\|\theta'\|^2 = \alpha^2\|\theta\|^2 + S` for constant S, written
    so that no decay (alpha = 1) gives the limit :math:`\|\theta\|^2 + nS`.

    Args:
        norm2: squared norm now, [th**2].
        source: S, [th**2 per step].
        alpha: 1 - lr * wd.
        horizon: n, in steps.

    Returns:
        The forecast, not below 0, [th**2].

    References:
        derived for this project from the norm balance; equilibrium as in Kosson et al., arXiv 2305.17212.
    """
    return _forecast(*(np.asarray(x, dtype=np.float64) for x in (norm2, source, alpha, horizon)))


def _forecast(norm2: Array, source: Array, alpha: Array, horizon: Array) -> Array:
    alpha2 = alpha**2
    shrink, loss = np.power(alpha2, horizon), 1 - alpha2
    # (1 - alpha**(2n)) / (1 - alpha**2): the number of steps whose source survives
    steps = np.where(loss != 0, (1 - shrink) / loss, horizon)
    return np.maximum(norm2 * shrink + source * steps, 0.0)
