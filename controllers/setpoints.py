r"""The laws a thermostat can follow: pure functions from signals to the rate that is wanted.

Two metrics. In ``"rms"`` a rate D is measured in units of the layers' own scale: :math:`\eta_l = D\,s_l` with
:math:`s_l` of :func:`thermoopt.controllers.units.layer_units`, about the root mean square of a layer's
parameters at the start, so D is the fraction of its own size by which an Adam update of unit size moves a
layer in one step. In ``"lr"`` a rate is a factor on ``group["lr"]``. D and factors have no unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from thermoopt.controllers.gear import SHARE

__all__ = [
    "LAWS",
    "Law",
    "Signals",
    "Wanted",
    "angular",
    "bounded_diffusion",
    "coherence",
    "diffusion",
    "distance",
    "driven_diffusion",
    "equilibrium_r",
    "polyak",
]

Evidence = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Signals:
    r"""The input of a law: plain numbers, NaN where a quantity is not known.

    Attributes:
        t: steps since the thermostat's start, from 1.
        total_steps: length of the run; None if it is not known.
        rate: the present rate, in the law's metric.
        floor: the smallest rate the law has ever wanted: where it started.
        r, coherence, energy_ratio, gaussianity: of the reading (:func:`thermoopt.physics.quantities`).
        r_error: standard error of ``r``.
        sigma: entropy production, [L per step].
        lr_eff: mean effective learning rate.
        phi, phi_star: entropy production of the updates, and its value in equilibrium.
        loss: last reported loss, [L].
        distance: displacement since the start: rms over coordinates of (theta - x0)/s.
        work: N = :math:`\sum w\,D\langle g, x_0-\theta\rangle`, [L].
        work_error: size that ``work`` would have if its changes from reading to reading were independent,
            :math:`\sqrt{\sum(\Delta N)^2}`.
        impulse: :math:`\|\sum w\,D\,s g\|_1`, [L].
        force: force along the motion over its mean so far: :math:`(\sigma/\eta)\,/\,(\sum\sigma/\sum\eta)`.
    """

    t: int
    total_steps: int | None
    rate: float
    floor: float
    r: float = math.nan
    r_error: float = math.nan
    coherence: float = math.nan
    energy_ratio: float = math.nan
    gaussianity: float = math.nan
    sigma: float = math.nan
    lr_eff: float = math.nan
    loss: float = math.nan
    distance: float = math.nan
    work: float = math.nan
    work_error: float = math.nan
    impulse: float = math.nan
    phi: float = math.nan
    phi_star: float = math.nan
    force: float = math.nan


class Wanted(NamedTuple):
    """A law's answer: the rate it wants, the evidence (value, and standard error or NaN), and the reason."""

    rate: float
    evidence: Evidence
    reason: str


KAPPA = 1.5
"""Displacement that free diffusion over the run gives, in units of the layers' own rms. Measured by this
project on six networks: final displacements at the best fixed rate lie between 1.8 and 4; 1.5 starts low."""

ANYTIME_STEPS = 1000
"""Length of run that a law assumes if none is given: the memory 1/(1 - beta2) of v. Measured by this project:
with 10,000 a recurrent net cooled after 400 steps ends 16 % above the run that knew, with 1000 within 2 %."""


def angular(s: Signals, *, kappa: float = KAPPA) -> Wanted:
    r"""Rate at which free diffusion over the run carries every layer ``kappa`` times its own rms away.

    .. math:: D = \min(\kappa\sqrt{3/T},\ 1/4)

    Uncorrelated steps of size :math:`\eta_t = D(1-t/T)` add up to an rms displacement
    :math:`D\sqrt{T/3}`. In pure noise that is an angular step of :math:`\kappa\sqrt{3 n_0/T}`. However short
    the run, no layer may move by more than a quarter of its size per step (:data:`~.gear.SHARE`).

    Args:
        s: signals; ``total_steps``.
        kappa: displacement over initial rms, > 0, no unit.

    References:
        derived for this project; angular steps of rotational equilibrium: Kosson et al., arXiv 2305.17212.
    """
    steps = s.total_steps or ANYTIME_STEPS
    rate = min(kappa * math.sqrt(3 / steps), SHARE)
    word = f"diffusion over {steps} steps covers {kappa:g} rms"
    return Wanted(rate, {"total_steps": (float(steps), 0.0)}, word)


def coherence(s: Signals, *, r_min: float = 0.8) -> Wanted | None:
    r"""One-sided brake towards r = 1, in proportion: nothing winds up.

    .. math:: \text{factor} = \min(1, r/r_{min})

    Where a network interpolates its data, r falls although nothing is too hot (E = C/d falls). The brake
    therefore acts not on r but on ``coherence`` r_c = r/E, which noise of any strength leaves at 1.

    Args:
        s: signals; ``coherence``.
        r_min: coherence below which the rate is lowered. On a plateau at the best fixed rate, r_c was 0.8 to
            1.1 on the networks of this project's measurements.

    References:
        derived for this project (theory of equilibrium without calibration).
    """
    if not s.coherence > 0:
        return None
    factor = min(1.0, s.coherence / r_min)
    word = "motion overshoots: lowered in proportion" if factor < 1 else "no overshoot: full rate"
    return Wanted(factor, {"coherence": (s.coherence, math.nan)}, word)


EQUILIBRATION = 0.15
"""Share of the run by which a good run has come from drift to r = 1. Measured by this project: r at the best
fixed rate is 1.3 to 3.3 at 5 % of the run, 0.7 to 1.9 at 10 %, about 1 at 15 to 20 %."""

DRIFT = 6.0
"""Excess of r over 1 at the very start: well above what a good run shows, for a rate once raised is not taken
back. Measured by this project: a GRU at a good rate has r = 3.6 at 4.5 % of its run; with 3.5, 4.5 and 6 it
ends 21, 16 and 4 % above the best tuned loss (1600 steps)."""

GROWTH = 3.0
"""Multiple of free diffusion that a rate may reach while r lies above its set-point. Measured by this
project: 1.5 to 2 leaves convolution nets 15 to 25 % above the best tuned loss, 3 does not overheat language
models."""

MAX_GROWTH = 16.0
"""Bound of that multiple where r lies far above."""


def equilibrium_r(t: int, total_steps: int | None) -> float:
    r"""Set-point of r: 1 in equilibrium, more before a run had time to get there.

    .. math:: r^*(u) = 1 + 6\,\max(0, 1 - u/0.15),\qquad u = t/T

    Args:
        t: steps since the start.
        total_steps: T; where None, :data:`ANYTIME_STEPS`.
    """
    u = t / (total_steps or ANYTIME_STEPS)
    return 1 + DRIFT * max(0.0, 1 - u / EQUILIBRATION)


def diffusion(s: Signals, *, kappa: float = KAPPA) -> Wanted | None:
    r"""Einstein's relation as a set-point: the step size at which motion is just diffusion.

    .. math::
        D \leftarrow \max\Bigl(D,\ c\,\frac{\mathrm{dist}}{\sqrt t}\Bigr),\qquad
        c = \begin{cases} 1 & r \le r^*(t) \\ \mathrm{clip}((r/r^*)^2,\ 3,\ 16) & r > r^*(t) \end{cases}

    from :math:`D = \kappa\sqrt{3/T}` upwards. A walk of independent steps D gets :math:`D\sqrt t` far, and
    then the law leaves D alone. If the run gets further, its steps agree with each other, and fewer but
    larger steps do the same work; if a valley confines it, dist stops growing and D stays. The factor c lets
    the rate run ahead of diffusion while the update's energy shows coherent drift, that is, while r exceeds
    its set-point (:func:`equilibrium_r`) by more than its own standard error.

    Args:
        s: signals; ``distance``, ``r``, ``r_error``.
        kappa: where it starts (:func:`angular`).

    References:
        derived for this project; with c = 1 and the norm of the gradient for the step it is DoG, Ivgi et al.,
        arXiv 2302.12022.
    """
    return _proposed(s, kappa, 1.0)


def _proposed(s: Signals, kappa: float, unknown: float) -> Wanted | None:
    """Return what :func:`diffusion` wants, with ``unknown`` for c where r is not known."""
    start = angular(s, kappa=kappa).rate
    if not math.isfinite(s.distance):
        return None
    goal = equilibrium_r(s.t, s.total_steps)
    error = s.r_error if math.isfinite(s.r_error) else 0.0
    drift = s.r - error > goal
    c = min(MAX_GROWTH, max(GROWTH, (s.r / goal) ** 2)) if drift else 1.0
    word = f"coherent drift, r above {goal:.2f}" if drift else "further than diffusion would get"
    if math.isnan(s.r):
        c, word = unknown, "driven by a force, r unknown" if unknown > 1 else word
    rate = max(start, s.rate, c * s.distance / math.sqrt(s.t))
    evidence = {"r": (s.r, s.r_error), "r_setpoint": (goal, 0.0), "distance": (s.distance, math.nan)}
    return Wanted(rate, {**evidence, "diffusion_length": (s.rate * math.sqrt(s.t), 0.0)}, word)


START = 1.0
"""``kappa`` of :func:`bounded_diffusion`. Measured by this project: the best fixed rates lie at 1 (vision
transformer) to 10 (convolution net) times sqrt(3/T); 1 starts at the low end."""

LEAD = 4.0
"""How far diffusion may run ahead of Prodigy's estimate. Measured by this project on ten small networks: 2
is too slow, 8 overheats small tables (geometric mean 1.15 instead of 1.08)."""


SIGNIFICANT = 1.4
"""Work over its error from which on it counts. Where nothing is gained that is about 1; n equal gains give
root n, gains that grow threefold from reading to reading 1.4. Measured by this project from kappa 1: with 1 a
policy overheats, with 2 a convolution net is left behind; 31 workloads have the same mean up to 1.4."""


def bounded_diffusion(s: Signals, *, kappa: float = START, lead: float = LEAD) -> Wanted | None:
    r"""Diffusion proposes, work over impulse bounds: at most ``lead`` times Prodigy's estimate.

    .. math::
        D \leftarrow \max\bigl(D,\ \kappa\sqrt{3/T},\ \min(c\,\mathrm{dist}/\sqrt t,\ 4 N/\|S\|_1)\bigr)

    with c and dist of :func:`diffusion`, N and S of :func:`distance`; where r is not known (an optimizer
    without Adam's moments), c is 3 while a unit of learning rate releases no less free energy than on the way
    so far (``force`` >= 1), else 1. Distance alone is a ratchet without a top: whatever moves the weights,
    noise at too large a rate included, raises it. The work done against the gradients is not: where motion
    only wanders, N stands still or turns negative while the impulse grows. N counts only if it is more than
    chance: at least 1.4 times what its changes would add up to if they were independent. The law only raises
    a rate; lowering it is left to the thermostat's reverse gear (:mod:`thermoopt.controllers.gear`).

    Args:
        s: signals; those of :func:`diffusion`, ``work``, ``work_error``, ``impulse``, ``force``.
        kappa: where it starts (:func:`angular`).
        lead: the bound over Prodigy's estimate, > 0.

    References:
        derived for this project; the bound: Mishchenko and Defazio, arXiv 2306.06101.
    """
    proposed = _proposed(s, kappa, GROWTH if s.force >= 1 else 1.0)
    if proposed is None or not s.impulse > 0:
        return None
    start = angular(s, kappa=kappa).rate
    bound = lead * s.work / s.impulse
    evidence = {**proposed.evidence, "work_over_impulse": (s.work / s.impulse, s.work_error / s.impulse)}
    if s.work < SIGNIFICANT * s.work_error:
        return Wanted(max(s.rate, start), evidence, "not raised: the work done could be chance")
    rate = max(s.rate, start, min(proposed.rate, bound))
    word, less = proposed.reason, f"{lead:g} times work over impulse"
    if rate <= max(s.rate, start):
        word = f"not raised: limited to {less}" if bound < proposed.rate else "not raised: no drift"
    elif bound < proposed.rate:
        word = f"{word}, limited to {less}"
    return Wanted(rate, evidence, word)


DRIVEN_START = 0.5
"""``kappa`` of :func:`driven_diffusion`. Measured by this project: small tables and full fine-tuning are best
at 0.06 to 0.3, others at 1 to 10, found from below. Means over 31 workloads are the same within 1 % from 0.4
to 1; of 25 others the worst ends 1.2, 1.3 and 1.9 times higher with 0.5, 0.7 and 1 than with 0.4."""

EARLY_LEAD, DRIVEN_LEAD = 2.0, 8.0
"""``lead`` of :func:`driven_diffusion` before equilibration and after: half and twice :data:`LEAD`, as then
the force decides besides. An early lead of 4 overheats small tables and policy gradients."""

FORCE = 0.5
"""Share of the mean force at which motion counts as driven. Measured by this project at kappa 0.2: at 20 to
30 % of the run it is 0.02 to 0.4 on small tables, whose best rate lies below, and 0.65 to 1.5 on convolution
nets, perceptrons, linear regression and LoRA, whose best lies 4 to 50 times above."""


def driven_diffusion(
    s: Signals, *, kappa: float = DRIVEN_START, lead: float = DRIVEN_LEAD, half: float = FORCE
) -> Wanted | None:
    r"""Diffusion bounded by work, with a wider bound while a force drives the motion.

    .. math::
        D \leftarrow \max\bigl(D,\ \kappa\sqrt{3/T},\ \min(c\,\mathrm{dist}/\sqrt t,\ \ell\,N/\|S\|_1)\bigr)

    with c and dist of :func:`diffusion`, N and S of :func:`distance`. Until equilibration (15 % of the run)
    :math:`\ell = 2`; from then on it is ``lead`` where the motion is driven, and D stands still elsewhere.
    Driven means that a unit of learning rate still releases free energy,
    :math:`f = (\sigma/\eta)/(\sum\sigma/\sum\eta) \ge f_0`, or, from twice that time on, that
    :math:`r \ge 1`. Once a network has memorised its data both fall while Adam's steps keep their size: a
    larger rate would only carry it further.

    Args:
        s: signals; those of :func:`bounded_diffusion`. An unknown force counts as present.
        kappa: where it starts (:func:`angular`).
        lead: the bound over Prodigy's estimate, > 0.
        half: f0, the share of the mean force below which the force counts as spent, > 0.

    References:
        derived for this project; the bound: Mishchenko and Defazio, arXiv 2306.06101.
    """
    time = s.t / (s.total_steps or ANYTIME_STEPS) / EQUILIBRATION
    spent = time >= 1 and s.force < half and not (time >= 2 and s.r >= 1)
    ahead = lead if time >= 1 else EARLY_LEAD
    bounded = bounded_diffusion(s, kappa=kappa, lead=ahead)
    if bounded is None:
        return None
    force = {"force": (s.force, math.nan), "force_setpoint": (half, 0.0)}
    known = {"r": (s.r, s.r_error)} if math.isfinite(s.r) else {}
    evidence = {**known, **bounded.evidence, **(force if math.isfinite(s.force) else {})}
    if spent:
        return Wanted(s.rate, evidence, "not raised: the force along the motion is spent")
    return bounded._replace(evidence=evidence)


def distance(s: Signals, *, k: float = 1.0) -> Wanted | None:
    r"""Prodigy's estimate of the distance to go, in the layers' own units: work over impulse.

    .. math:: D \leftarrow \max(D,\ k\,N/\|S\|_1)

    with N the work done against the gradients since the start and S their impulse, weighted as in
    :class:`thermoopt.physics.Weights`.

    Args:
        s: signals; ``work``, ``impulse``.
        k: factor on the estimate, > 0.

    References:
        Mishchenko and Defazio, arXiv 2306.06101, in another metric.
    """
    if not s.impulse > 0:
        return None
    estimate = k * s.work / s.impulse
    evidence = {"work": (s.work, math.nan), "impulse": (s.impulse, math.nan)}
    return Wanted(max(s.rate, s.floor, estimate), evidence, "work over impulse: there is further to go")


def polyak(s: Signals, *, f_star: float = 0.0, k: float = 1.0) -> Wanted | None:
    r"""Entropy production in proportion to the loss that is left: :math:`\sigma^* = k(L - f^*)`.

    .. math:: \text{factor} \leftarrow \text{factor}\cdot k(L-f^*)/\sigma

    Args:
        s: signals; ``loss``, which must be reported (a closure or ``report_loss``), ``sigma``, ``rate``.
        f_star: the lowest possible loss, [L]. With 0 the law is far too hot on language models early on.
        k: share of the remaining loss that a step is to release to first order; 1 is Polyak's step.

    References:
        Polyak, "Introduction to optimization", 1987, section 5.3.
    """
    if not (math.isfinite(s.loss) and s.sigma > 0):
        return None
    goal = k * max(0.0, s.loss - f_star)
    evidence = {"loss": (s.loss, math.nan), "sigma": (s.sigma, math.nan), "sigma_setpoint": (goal, math.nan)}
    return Wanted(s.rate * goal / s.sigma, evidence, "entropy production brought to its set-point")


@dataclass(frozen=True)
class Law:
    """A law and what it requires.

    Attributes:
        want: function of the signals (and options) that returns the rate wanted; None asks for nothing.
        metric: ``"rms"`` or ``"lr"``.
        start: function of the run's length (and the same options): the rate before the first reading.
        needs: additional sums that must be measured (:data:`thermoopt.physics.TRAVEL_SUMS`).
    """

    want: Callable[..., Wanted | None]
    metric: str
    start: Callable[..., float] = lambda total_steps, **options: 1.0
    needs: frozenset[str] = frozenset()


def _angular_start(total_steps: int | None, *, kappa: float, **options: float) -> float:
    return angular(Signals(1, total_steps, math.nan, math.nan), kappa=kappa).rate


SMALLEST = 1e-3
"""Where ``distance`` starts: Prodigy's d0 in the layers' units (measured here: smaller costs growth time)."""

BOTH = frozenset({"distance", "impulse"})

LAWS: dict[str, Law] = {
    "bounded_diffusion": Law(bounded_diffusion, "rms", partial(_angular_start, kappa=START), BOTH),
    "driven_diffusion": Law(driven_diffusion, "rms", partial(_angular_start, kappa=DRIVEN_START), BOTH),
    "diffusion": Law(diffusion, "rms", partial(_angular_start, kappa=KAPPA), frozenset({"distance"})),
    "angular": Law(angular, "rms", partial(_angular_start, kappa=KAPPA)),
    "distance": Law(distance, "rms", lambda total_steps, **options: SMALLEST, frozenset({"impulse"})),
    "coherence": Law(coherence, "lr"),
    "polyak": Law(polyak, "lr"),
}
"""The laws by name."""
