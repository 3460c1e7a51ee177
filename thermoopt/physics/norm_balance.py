r"""Norm balance of layers under weight decay: source and decay, where they lead, when that is harmful.

.. math:: \|\theta'\|^2 = \alpha^2\|\theta\|^2 + S, \qquad
          S = \eta^2\|U\|^2 - 2\alpha\eta\langle\theta,U\rangle

with :math:`\alpha = 1-\eta\lambda` and U the update without decay. Plain data and pure functions; shared by
the barostat, which acts on it, and the collapse detector, which reports it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermoopt.physics.terms import Term, norm_forecast

__all__ = [
    "ANGULAR_BOUND",
    "AVERAGE",
    "FREE_FALL",
    "NU",
    "TOLERANCE",
    "Balance",
    "NormMotion",
    "repaired_decay",
    "sgd_shrink",
    "steps_until",
    "swing_rest",
]

Array = NDArray[np.float64]

NU = 0.5
"""A layer collapses when its norm falls below this fraction of its initial norm. Measured on this project's
six small workloads at lr 1e-3 and 1e-2: with the usual decay of 0.01 or 0.1 no norm fell below 0.77 of its
initial value; with 30 times that decay, norms fell to 0.06 to 0.6 where the validation loss suffered most."""

FREE_FALL = 0.5
"""Free-fall fraction above which a norm is falling rather than fluctuating about its equilibrium (0): decay
removes more than twice what the source returns. Derived from the norm balance (theory, section 4)."""

ANGULAR_BOUND = 1e-2
"""Radians per step at the forecast norm above which a small norm is harmful. This lies just above the plateau
of 3e-3 to 9e-3 that every workload trained from scratch here reaches at its best learning rate. On the same
six workloads a norm that starts far above its equilibrium (an embedding of unit variance) and shrinks in a
healthy run gives up to 5e-3 at the forecast; decay 30 times too high mostly gives 1e-2 to 1e-1."""

TOLERANCE = 0.1
"""Smallest relative change of a repaired decay that is worth an action: about the error of a source S
averaged over 50 steps in a 64 x 64 matrix (derived: relative noise (rms/lr) sqrt(n0/d), 0.1 at lr 1e-3)."""

AVERAGE = 50
"""Steps that a reading averages over by default. The barostat does nothing during the first AVERAGE steps,
and the forecast for an optimizer without a second moment looks this many steps ahead: the source has been
measured over no longer."""


def repaired_decay(source: float, lr: float, norm2: float) -> float:
    r"""Weight decay at which source and decay balance at a given squared norm.

    .. math:: \lambda = S/(2\eta\,\|\theta\|^2)

    to first order in :math:`\eta\lambda`; ``wd_balance`` is then exactly 1 at that norm.

    Args:
        source: S, [th**2 per step].
        lr: effective learning rate.
        norm2: the squared norm to hold, [th**2], above 0.

    References:
        derived for this project from the norm balance; for pure noise see Kosson et al., arXiv 2305.17212.
    """
    return source / (2 * lr * norm2) if lr > 0 else math.nan


def sgd_shrink(
    lr: float, wd: float, momentum: float, dampening: float = 0.0, nesterov: bool = False
) -> float:
    r"""Factor per step by which torch's SGD shrinks a norm when only decay acts on it.

    SGD adds decay to the gradient, so that it passes through the momentum b,
    :math:`b' = \mu b + (1-\tau)\lambda\theta`, :math:`\theta' = \theta - \eta b'` (under Nesterov
    :math:`\theta' = \theta - \eta(\lambda\theta + \mu b')`): two linear equations, with
    :math:`\delta = \eta\lambda(1-\tau)` the roots of

    .. math:: z^2 - (1+\mu-\delta)\,z + \mu \qquad
              (\text{Nesterov: } z^2 - (1+\mu)(1-\delta)\,z + \mu(1-\delta))

    of which the larger in magnitude dominates. For small decay it is
    :math:`1-\eta\lambda(1-\tau)/(1-\mu)`; from :math:`\delta = (1-\sqrt\mu)^2` on, the norm oscillates and
    shrinks by :math:`\sqrt\mu` per step, however large the decay; beyond :math:`\delta = 2(1+\mu)` the factor
    exceeds 1.

    Args:
        lr, wd, momentum, dampening, nesterov: the group's values.

    References:
        derived for this project.
    """
    delta = lr * wd * (1 - dampening)
    trace, determinant = 1 + momentum - delta, momentum
    if nesterov:
        trace, determinant = (1 + momentum) * (1 - delta), momentum * (1 - delta)
    inside = trace**2 - 4 * determinant
    if inside < 0:
        return math.sqrt(determinant)
    return (abs(trace) + math.sqrt(inside)) / 2


def swing_rest(lr: float, wd: float, momentum: float, dampening: float = 0.0) -> float:
    r"""Stationary squared norm under torch's SGD over that of its gradients; NaN where no norm oscillates.

    A norm oscillates where :math:`\delta = \eta\lambda(1-\tau)` is at least :math:`(1-\sqrt\mu)^2`
    (:func:`sgd_shrink`). The two equations form a second-order autoregression, whose variance under white
    gradients is

    .. math:: \frac{\eta^2(1-\tau)^2(1+\mu)}{(1-\mu)\,\delta\,(2(1+\mu)-\delta)}\,\|g\|^2

    (exact without Nesterov, approximate with it).

    Args:
        lr, wd, momentum, dampening: the group's values.

    References:
        Box and Jenkins, Time Series Analysis, 1970, on autoregressions of second order.
    """
    delta = lr * wd * (1 - dampening)
    if not 0 < momentum < 1 or not (1 - math.sqrt(momentum)) ** 2 <= delta < 2 * (1 + momentum):
        return math.nan
    noise2 = (lr * (1 - dampening)) ** 2
    return noise2 * (1 + momentum) / ((1 - momentum) * delta * (2 * (1 + momentum) - delta))


def steps_until(norm2: ArrayLike, source: ArrayLike, alpha: ArrayLike, target2: ArrayLike) -> Array:
    r"""Steps until the forecast of a squared norm falls to a target; infinite if it never does.

    The closed form of :func:`~thermoopt.physics.norm_forecast`, solved for n:

    .. math:: n = \ln\frac{\|\theta\|^2_{target}-\|\theta\|^2_{eq}}{\|\theta\|^2-\|\theta\|^2_{eq}}
              \Big/ \ln\alpha^2, \qquad \|\theta\|^2_{eq} = S/(1-\alpha^2)

    0 where the norm is already at or below the target and not rising.

    Args:
        norm2: squared norm now, [th**2].
        source: S, [th**2 per step].
        alpha: factor per step by which decay alone shrinks the norm.
        target2: the target squared norm, [th**2].

    References:
        derived for this project.
    """
    norm2, source, alpha, target2 = np.broadcast_arrays(
        *(np.asarray(x, dtype=np.float64) for x in (norm2, source, alpha, target2))
    )
    with np.errstate(all="ignore"):
        loss = 1 - alpha**2
        rest = source / loss  # the norm at which it comes to rest
        steps = np.where(
            loss != 0,
            np.log((target2 - rest) / (norm2 - rest)) / np.log(alpha**2),
            (target2 - norm2) / source,
        )
        out = np.where((norm2 > target2) & (steps >= 0), steps, np.inf)
        arrived = (norm2 <= target2) & (source <= loss * norm2)
    return np.where(arrived, 0.0, out)


@dataclass(frozen=True)
class NormMotion:
    r"""How layers move, separated from decay and learning rate: enough to form the balance at any rates.

    Attributes:
        norm2: :math:`\|\theta\|^2`, [th**2].
        uu: :math:`\|U\|^2`, where U is the update without decay.
        tu: :math:`\langle\theta,U\rangle`.
        gg: :math:`\|g\|^2`.
    """

    norm2: Array
    uu: Array
    tu: Array
    gg: Array

    @classmethod
    def of(cls, terms: Array, taken: ArrayLike = 0.0) -> NormMotion:
        r"""Build it from the layers' terms ``[len(Term), n]``.

        Decoupled decay (``wd_eff``) is not part of U. Decay that passes through the gradient is, and removes
        the fraction :math:`1-\alpha` of :math:`\theta` per step; it is subtracted here,
        :math:`\eta U \leftarrow \eta U - (1-\alpha)\theta`, which keeps the balance exact
        (:math:`S = \Delta\|\theta\|^2 + (1-\alpha^2)\|\theta\|^2`).

        Args:
            terms: as in :attr:`thermoopt.account.Reading.terms`.
            taken: :math:`1-\alpha`, averaged like the reading; 0 where decay is not part of U.
        """
        norm2, numel, source, step2 = terms[[Term.TT, Term.NUMEL, Term.SOURCE, Term.STEP2]]
        taken = np.asarray(taken, dtype=np.float64)
        with np.errstate(all="ignore"):
            lr, wd = terms[[Term.LR_NUMEL, Term.WD_NUMEL]] / numel
            radial = (step2 - source) / (2 * (1 - lr * wd))  # lr <th, U>
            step2 = step2 - 2 * taken * radial + taken**2 * norm2
            radial = radial - taken * norm2
            return cls(norm2, np.maximum(step2, 0.0) / lr**2, radial / lr, terms[Term.GG])

    def source(self, lr: ArrayLike, alpha: ArrayLike, swing: ArrayLike = np.nan) -> Array:
        r"""S at given rates, [th**2 per step].

        Args:
            lr, alpha: learning rate, and factor per step by which decay alone shrinks the norm.
            swing: :func:`swing_rest` of a layer whose norm oscillates, else NaN. Within an oscillation the
                displacement says nothing about a source, so S is the source that holds the stationary norm.
        """
        lr, alpha, swing = (np.asarray(x, dtype=np.float64) for x in (lr, alpha, swing))
        with np.errstate(all="ignore"):
            moved = lr**2 * self.uu - 2 * alpha * lr * self.tu
            return np.where(np.isnan(swing), moved, (1 - alpha**2) * swing * self.gg)


@dataclass(frozen=True)
class Balance:
    """Norm balance of layers; arrays in the order of ``names``.

    Attributes:
        names: the layers.
        reference2, norm2: squared norms at the start and now, [th**2].
        numel, lr: real elements, effective learning rate.
        source: S, [th**2 per step].
        pull: 2 lr wd norm2, what decay takes, [th**2 per step].
        excess: R_wd = pull / source, infinite where there is decay but no positive source.
        free_fall: 1 - 1/R_wd.
        forecast2: squared norm at the horizon, [th**2].
        angular, angular_forecast: radians per step now, and at the forecast norm.
    """

    names: Sequence[str]
    reference2: Array
    norm2: Array
    numel: Array
    lr: Array
    source: Array
    pull: Array
    excess: Array
    free_fall: Array
    forecast2: Array
    angular: Array
    angular_forecast: Array

    @classmethod
    def of(cls, terms: Array, names: Sequence[str], reference2: Sequence[float], horizon: float) -> Balance:
        """Build it from the layers' terms ``[len(Term), n]``, at the reading's own rates."""
        norm2, numel, source, pull = terms[[Term.TT, Term.NUMEL, Term.SOURCE, Term.PULL]]
        with np.errstate(divide="ignore", invalid="ignore"):
            lr, wd = terms[[Term.LR_NUMEL, Term.WD_NUMEL]] / numel
            alpha = 1 - lr * wd
        reference2_, step2 = np.array(reference2, dtype=np.float64), terms[Term.STEP2]
        return cls._form(names, reference2_, norm2, numel, lr, alpha, source, pull, step2, horizon)

    @classmethod
    def at(
        cls,
        motion: NormMotion,
        names: Sequence[str],
        reference2: Array,
        numel: Array,
        lr: Array,
        alpha: Array,
        horizon: ArrayLike,
        source: Array,
    ) -> Balance:
        """Build it at given rates.

        Args:
            motion: how the layers move.
            names, reference2, numel, source: as the attributes.
            lr, alpha: learning rate, and factor per step by which decay alone shrinks the norm.
            horizon: steps to look ahead.
        """
        norm2 = motion.norm2
        with np.errstate(all="ignore"):
            pull, step2 = 2 * (1 - alpha) * norm2, lr**2 * motion.uu
            return cls._form(names, reference2, norm2, numel, lr, alpha, source, pull, step2, horizon)

    @classmethod
    def _form(
        cls,
        names: Sequence[str],
        reference2: Array,
        norm2: Array,
        numel: Array,
        lr: Array,
        alpha: Array,
        source: Array,
        pull: Array,
        step2: Array,
        horizon: ArrayLike,
    ) -> Balance:
        with np.errstate(divide="ignore", invalid="ignore"):
            forecast2 = norm_forecast(norm2, source, alpha, horizon)
            return cls(
                names=names,
                reference2=reference2,
                norm2=norm2,
                numel=numel,
                lr=lr,
                source=source,
                pull=pull,
                excess=np.where(source > 0, pull / source, np.where(pull > 0, np.inf, np.nan)),
                free_fall=np.where(pull > 0, 1 - source / pull, np.nan),
                forecast2=forecast2,
                angular=np.sqrt(step2 / norm2),
                angular_forecast=np.sqrt(step2 / forecast2),
            )

    def falls(self, nu: float, angular_bound: float) -> NDArray[np.bool_]:
        r"""Return the mask of the layers that collapse, ``[n]``.

        A layer collapses if its forecast norm is below :math:`\nu` times its initial norm, its free-fall
        fraction is above :data:`FREE_FALL` (or not negative, if the norm is that small already), and its
        angular step at the forecast norm is above the bound.
        """
        held2 = nu**2 * self.reference2
        falls = (self.free_fall > FREE_FALL) | ((self.norm2 < held2) & (self.free_fall >= 0))
        return falls & (self.forecast2 < held2) & (self.angular_forecast > angular_bound)

    def evidence(self, i: int) -> dict[str, tuple[float, float]]:
        """Return the evidence for an action on layer i as (value, error); a reading gives no errors: NaN."""
        values = {
            "R_wd": self.excess[i],
            "norm": math.sqrt(self.norm2[i]),
            "reference": math.sqrt(self.reference2[i]),
            "forecast": math.sqrt(self.forecast2[i]),
            "free_fall": self.free_fall[i],
            "angular_step": self.angular[i],
            "angular_forecast": self.angular_forecast[i],
        }
        return {name: (float(value), math.nan) for name, value in values.items()}
