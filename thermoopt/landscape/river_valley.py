r"""The river valley: a toy loss whose training thermodynamics is known in closed form.

.. math:: \ell(x, y) = -f y + \tfrac12\sum_{i=1}^{n} a_i e^{\kappa y} x_i^2

x are the fast coordinates (the valley, whose walls have curvature :math:`a_i(y) = a_i e^{\kappa y}`) and y is
the slow one (the river, which descends with slope f). Minibatches add white noise of standard deviation s to
every fast gradient, and none to the river's. Units: loss [L], coordinates [th], :math:`\eta` [th^2/L] for SGD
and [th] for sign and Adam, s [L/th], a [L/th^2], temperature [L] (Boltzmann's constant is 1).

:func:`thermoopt.landscape.simulate` simulates the formulas; ``docs/physics.md`` compares them with
measurements.

References:
    Liu et al., "Neural thermodynamic laws for large language model training", arXiv 2505.10559. Exact forms
    at finite :math:`\eta`, the closure for sign updates and Adam's forms: derived for this project.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["RULES", "RiverValley", "greedy_rates", "relaxation"]

Array = NDArray[np.float64]

RULES = ("sgd", "sign", "adam")
"""Update rules with closed forms."""


@dataclass(frozen=True)
class RiverValley:
    """A valley of exponentially changing width along a river of constant slope.

    Args:
        curvatures: a_i at y = 0, each > 0.
        noise: s, standard deviation of the noise on each fast gradient, > 0.
        slope: f, the force down the river.
        narrowing: kappa, d ln a / dy: > 0 if the valley narrows downstream.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    curvatures: tuple[float, ...]
    noise: float = 1.0
    slope: float = 0.0
    narrowing: float = 0.0

    def __post_init__(self) -> None:
        values = tuple(float(a) for a in self.curvatures)
        if not values or not all(math.isfinite(a) and a > 0 for a in values):
            raise ValueError(f"curvatures must be one or more finite numbers > 0, got {self.curvatures!r}")
        if not (math.isfinite(self.noise) and self.noise > 0):
            raise ValueError(f"noise must be a finite number > 0, got {self.noise!r}")
        for name in ("slope", "narrowing"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)!r}")
        object.__setattr__(self, "curvatures", values)

    # ------------------------------------------------------------------ the landscape

    @property
    def modes(self) -> int:
        """Number of fast coordinates, n."""
        return len(self.curvatures)

    def curvature(self, y: ArrayLike = 0.0) -> Array:
        """Curvatures a_i(y), ``[..., n]`` for y of shape ``[...]``."""
        y = np.asarray(y, dtype=np.float64)
        return np.exp(self.narrowing * y)[..., None] * np.asarray(self.curvatures)

    def river(self, y: ArrayLike) -> Array:
        """Height of the river bed, c(y) = -f y, [L]."""
        return -self.slope * np.asarray(y, dtype=np.float64)

    def fast_losses(self, x: ArrayLike, y: ArrayLike = 0.0) -> Array:
        """Loss of each fast coordinate, a_i(y) x_i**2 / 2, ``[..., n]``, [L]."""
        return self.curvature(y) * np.square(np.asarray(x, dtype=np.float64)) / 2

    def loss(self, x: ArrayLike, y: ArrayLike = 0.0) -> Array:
        """Total loss, ``[...]``, [L]."""
        return self.river(y) + self.fast_losses(x, y).sum(axis=-1)

    def force(self, x: ArrayLike, y: ArrayLike = 0.0) -> Array:
        r"""Force on the river coordinate, :math:`-\partial\ell/\partial y`, ``[...]``, [L/th]."""
        return self.slope - self.narrowing * self.fast_losses(x, y).sum(axis=-1)

    # ------------------------------------------------------------------ equilibrium at fixed y

    def thermal_loss(
        self, eta: float, rule: str = "sgd", y: float = 0.0, beta1: float = 0.9, leading: bool = False
    ) -> Array:
        r"""Stationary loss of each fast coordinate at a constant learning rate.

        .. math::
            \text{sgd:}\quad \frac{\eta s^2}{2(2-a\eta)} \to \frac{\eta s^2}{4},\qquad
            \text{sign:}\quad \frac{s^2 w}{2a},\; w = \frac{k^2+k\sqrt{k^2+4}}{2},\;
            k = \frac{a\eta}{2s}\sqrt{\frac{\pi}{2}} \to \frac{\eta s}{2}\sqrt{\frac{\pi}{8}}

        .. math::
            \text{adam:}\quad \frac{h s^2(1+\beta_1)}{2(2(1+\beta_1)-(1-\beta_1)ah)},\quad
            h = \frac{\eta}{\sqrt v},\quad v = s^2 + 2a\ell_f \to \frac{\eta s}{4}

        The arrows are the limits of small :math:`\eta`, in which a drops out (**equipartition**). The form
        for SGD is exact; the one for sign assumes that x is Gaussian; the one for Adam assumes that v is
        constant (beta2 near 1, eps 0) and is otherwise exact.

        Args:
            eta: learning rate, > 0 and below the stability limit.
            rule: one of :data:`RULES`.
            y: position on the river.
            beta1: decay of Adam's first moment.
            leading: whether to return the limit of small ``eta``.

        Returns:
            ``[n]``, [L].

        Raises:
            ValueError: if ``rule`` is unknown, ``beta1`` is outside [0, 1), or ``eta`` is not a positive
                number below the stability limit (:meth:`largest_rate`), beyond which there is no equilibrium.
        """
        a, s = self.curvature(y), self.noise
        self._check(eta, rule, y, beta1)
        if rule == "sgd":
            return np.full(self.modes, eta * s**2 / 4) if leading else eta * s**2 / (2 * (2 - a * eta))
        if rule == "sign":
            if leading:
                return np.full(self.modes, eta * s * math.sqrt(math.pi / 8) / 2)
            k = a * eta / (2 * s) * math.sqrt(math.pi / 2)
            return s**2 * (k**2 + k * np.sqrt(k**2 + 4)) / 2 / (2 * a)
        if leading:
            return np.full(self.modes, eta * s / 4)
        loss = np.full(self.modes, eta * s / 4)
        for _ in range(200):  # a contraction: v grows with the loss, the loss falls with v
            h = eta / np.sqrt(s**2 + 2 * a * loss)
            loss = h * s**2 * (1 + beta1) / (2 * (2 * (1 + beta1) - (1 - beta1) * a * h))
        return loss

    def largest_rate(self, y: float = 0.0, rule: str = "sgd", beta1: float = 0.9) -> float:
        r"""Learning rate at which the steepest wall becomes unstable.

        :math:`2/a` for SGD; infinite for sign; for Adam :math:`2s(1+\beta_1)/(a(1-\beta_1))`, the limit with
        v at its value in pure noise, beyond which v grows with the loss and the closed form no longer holds.
        """
        a = float(self.curvature(y).max())
        if rule == "sgd":
            return 2 / a
        return math.inf if rule == "sign" else 2 * self.noise * (1 + beta1) / (a * (1 - beta1))

    def temperature(self, eta: float, rule: str = "sgd", y: float = 0.0, **options: Any) -> Array:
        r"""Temperature :math:`T_i = 2\ell_{f,i} = a_i\langle x_i^2\rangle` of each mode, ``[n]``, [L].

        Args:
            eta, rule, y, options: as for :meth:`thermal_loss`.
        """
        return 2 * self.thermal_loss(eta, rule, y, **options)

    @property
    def heat_capacity(self) -> float:
        r"""Heat capacity :math:`d\ell/dT = n/2`, also the variance of the loss over T**2, no unit."""
        return self.modes / 2

    def entropy(self, temperature: ArrayLike, y: float = 0.0) -> Array:
        r"""Entropy of each mode, :math:`\tfrac12\ln(2\pi e\,T/a)`, ``[n]``, nats (of x measured in [th])."""
        return np.log(2 * math.pi * math.e * _hot(temperature) / self.curvature(y)) / 2

    def free_energy(self, temperature: ArrayLike, y: ArrayLike = 0.0) -> Array:
        r"""Free energy of the river, :math:`F(y) = c(y) + \tfrac12\sum_i T_i\ln a_i(y)`, [L].

        It is :math:`\langle\ell\rangle - \sum T_i S_i` up to terms independent of y.
        """
        return self.river(y) + (_hot(temperature) / 2 * np.log(self.curvature(y))).sum(axis=-1)

    def entropic_force(self, temperature: ArrayLike, y: ArrayLike = 0.0) -> Array:
        r"""Mean push of the valley's walls on the river, :math:`-\tfrac12\sum_i T_i\,a_i'/a_i`, [L/th].

        It points towards the wide end; together with the slope it is :math:`-F'(y)`. Here
        :math:`a'/a = \kappa` everywhere.
        """
        total = np.broadcast_to(_hot(temperature), (self.modes,)).sum()
        return np.full(np.shape(y), -self.narrowing * total / 2)

    @property
    def stopping_temperature(self) -> float:
        r"""Temperature :math:`2f/(n\kappa)` at which the walls stop the river; infinite if none does."""
        push = self.modes * self.narrowing / 2
        return self.slope / push if push and self.slope / push > 0 else math.inf

    # ------------------------------------------------------------------ out of equilibrium

    def conduction(self, loss: ArrayLike, eta: float, y: float = 0.0) -> Array:
        r"""Rate at which a mode's loss approaches equilibrium under SGD, [L per step].

        .. math:: d\ell_f/dt = -2a\eta(\ell_f - \ell_{eq})

        to leading order in :math:`a\eta`; :func:`relaxation` gives the exact course.
        """
        gap = np.asarray(loss, dtype=np.float64) - self.thermal_loss(eta, y=y)
        return -2 * self.curvature(y) * eta * gap

    def fast_losses_along(self, etas: ArrayLike, start: ArrayLike, y: float = 0.0) -> Array:
        r"""Exact mean fast losses of SGD along any schedule.

        .. math:: \ell' = (1-a\eta)^2\,\ell + \tfrac12 a\,\eta^2 s^2

        Args:
            etas: ``[steps]`` learning rates >= 0.
            start: mean losses before the first step, ``[n]`` or one number, [L].
            y: position on the river, held fixed.

        Returns:
            ``[steps + 1, n]``, [L].

        Raises:
            ValueError: if ``etas`` is not a list of finite numbers >= 0.
        """
        return relaxation(self.curvature(y), etas, start, self.noise)

    def final_loss(self, etas: ArrayLike, start: ArrayLike) -> float:
        r"""Mean loss of SGD at the end of a schedule in a valley of constant width, :math:`c(fD)+\sum\ell_f`.

        The river moves by :math:`f\sum\eta`, regardless of the order of the rates.

        Raises:
            ValueError: if the valley narrows or widens.
        """
        if self.narrowing:
            raise ValueError(
                f"narrowing must be 0, since the river's path is unknown otherwise, got {self.narrowing!r}"
            )
        rates = np.asarray(etas, dtype=np.float64)
        return float(self.river(self.slope * rates.sum()) + self.fast_losses_along(rates, start)[-1].sum())

    def _check(self, eta: float, rule: str, y: float, beta1: float) -> None:
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(map(repr, RULES))}, got {rule!r}")
        if not 0 <= beta1 < 1:
            raise ValueError(f"beta1 must be a number >= 0 and < 1, got {beta1!r}")
        limit = self.largest_rate(y, rule, beta1)
        if not 0 < eta < limit:
            raise ValueError(
                f"eta must be > 0 and < {limit:.6g}, got {eta!r}: beyond it the steepest wall "
                f"(curvature {self.curvature(y).max():.6g}) is unstable and there is no equilibrium"
            )


def relaxation(
    curvature: ArrayLike, etas: ArrayLike, start: ArrayLike, noise: ArrayLike = 1.0, beta1: float = 0.0
) -> Array:
    r"""Exact mean losses in parabolas along any schedule, for SGD and for Adam as a heavy ball.

    .. math::
        m' = \beta_1 m + (1-\beta_1)(a x + s\xi),\quad x' = x - \eta m',\quad
        \ell = \tfrac12 a\langle x^2\rangle

    computed from the second moments. With :math:`\beta_1 = 0`,
    :math:`\ell' = (1-a\eta)^2\ell+\tfrac12a\eta^2s^2`. Adam with slow v performs this motion in the
    coordinates :math:`x = v^{1/4}\theta`, with s the gradient's noise times :math:`v^{-1/4}` and a the
    curvature over :math:`\sqrt v`. The moment m starts at 0.

    Args:
        curvature: a, ``[n]``, >= 0.
        etas: learning rates >= 0, ``[steps]``.
        start: mean losses at the start, ``[n]`` or one number.
        noise: s, the noise of the gradients, ``[n]`` or one number.
        beta1: decay of the moment, in [0, 1).

    Returns:
        ``[steps + 1, n]``, [L].

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    a, s2 = np.atleast_1d(np.asarray(curvature, dtype=np.float64)), np.square(noise)
    rates = np.asarray(etas, dtype=np.float64)
    if not np.all(np.isfinite(a) & (a >= 0)):
        raise ValueError(f"curvature must be finite numbers >= 0, got {curvature!r}")
    if rates.ndim != 1 or not np.all(np.isfinite(rates)) or np.any(rates < 0):
        raise ValueError(f"etas must be finite numbers >= 0, got {etas!r}")
    if not 0 <= beta1 < 1:
        raise ValueError(f"beta1 must be a number >= 0 and < 1, got {beta1!r}")
    fresh = 1 - beta1
    out = np.empty((len(rates) + 1, len(a)))
    out[0] = start
    xx = np.divide(2 * out[0], a, out=np.zeros(len(a)), where=a > 0)
    xm, mm = np.zeros(len(a)), np.zeros(len(a))
    for t, eta in enumerate(rates):
        mm = beta1**2 * mm + 2 * beta1 * fresh * a * xm + fresh**2 * (a**2 * xx + s2)
        xm = beta1 * xm + fresh * a * xx  # of x before with m after the step
        xx = xx - 2 * eta * xm + eta**2 * mm
        xm = xm - eta * mm
        out[t + 1] = a * xx / 2
    return out


def greedy_rates(curvature: float, eta0: float, steps: int) -> Array:
    r"""Schedule that lowers the loss of one mode as far as possible at every step: the 1/t law.

    .. math:: \eta_t = \frac{1}{2/\eta_0 + a\,t},\qquad \ell_{t+1} = \tfrac12\eta_t s^2

    exact for SGD in a parabola, starting from the equilibrium at :math:`\eta_0`: each rate is
    :math:`2\ell_t/(s^2 + 2a\ell_t)`, which minimises the next loss. The mode is then always twice as hot as
    the equilibrium of its current rate. A spectrum of modes, or a river, needs other schedules.

    Args:
        curvature: a, > 0.
        eta0: learning rate of the initial equilibrium, > 0 and < 2/a.
        steps: number of steps, at least 1.

    Returns:
        ``[steps]``.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    if not (math.isfinite(curvature) and curvature > 0):
        raise ValueError(f"curvature must be a finite number > 0, got {curvature!r}")
    if not 0 < eta0 < 2 / curvature:
        raise ValueError(f"eta0 must be > 0 and < 2/curvature = {2 / curvature:.6g}, got {eta0!r}")
    if isinstance(steps, bool) or steps != int(steps) or steps < 1:
        raise ValueError(f"steps must be an integer >= 1, got {steps!r}")
    return 1 / (2 / eta0 + curvature * np.arange(int(steps)))


def _hot(temperature: ArrayLike) -> Array:
    t = np.asarray(temperature, dtype=np.float64)
    if not (np.all(np.isfinite(t)) and np.all(t > 0)):
        raise ValueError(f"temperature must be finite numbers > 0, got {temperature!r}")
    return t
