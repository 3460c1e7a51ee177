"""Kinds of finding about the learning rate and the momentum."""

from __future__ import annotations

import math

import numpy as np

from thermoopt.diagnosis.evidence import MIN_READINGS, Evidence, mean_interval, median
from thermoopt.diagnosis.finding import Finding, two_digits
from thermoopt.physics import GAUSSIAN

__all__ = [
    "learning_rate_too_high",
    "learning_rate_too_low",
    "momentum_memory",
    "momentum_overdamped",
    "oscillation",
]

INTERMITTENT = 0.25
"""Gaussianity N1/d below which gradients come in bursts that v remembers; 0.798 is Gaussian. Measured: 0.15
and more in healthy runs but for convolutions at three times their best rate (0.06 to 0.11), 0.16 and less at
a hundred times."""

CALM = 0.6
"""r above which an update is not small against its own equilibrium. Measured: below 0.5 at a hundred times
the best rate."""

OVERSIZED = 3.0
"""Learning rate over a matrix's rms at the start from which a single Adam step replaces what is there.
Measured, median over matrices: 0.02 to 1.4 in healthy runs within a factor of 3 of the best rate, but for a
regression whose weights must grow 40 times; 5 to 45 at a hundred times."""

USUAL = 0.1
"""The same ratio at the best rate of five of six workloads is 0.05 to 0.45: where advice leads back to."""

RISEN = 1.5
"""A running mean of ten losses over the first from which the run made things worse. Measured: at most 1.1 in
healthy runs with warm-up, 1.4 to 33,000 in four of six at a hundred times the best rate."""

UNLEARNED = 0.9
"""Share of the first loss that remains in the last quarter of a run that learned nothing. Measured: healthy
runs are at 0.68 or below after 400 steps."""

COHERENT = 1.5
"""r above which drift outweighs equilibrium (1), for ``learning_rate_too_low``."""

ALIGNED = 0.1
"""Cosine of gradient and moment above which a drift lasts; 0 in pure noise. Measured: above 0.11 in every
reading at a thousandth of the best rate."""

STILL = 5e-4
"""Radians a step below which a run hardly moves: a sixth of the 3e-3 to 9e-3 that runs from scratch have at
their best rate (this project's measurements), just below the 6e-4 of fine-tuning."""

LONG_MEMORY = 60.0
"""Steps of momentum, 1/(1 - beta1), from which it is asked whether they pay: six times the usual 10, and
above the 50 of beta1 0.98."""

DRIFT = 2.0
"""Coherence above which a moment holds more signal than noise leaves in it (1 in pure noise, whatever beta1).
Measured: 3.2 to 20 at beta1 0.999; 0.74 to 1.6 at 0.9."""

SWINGING = -0.25
"""Cosine of gradient and moment below which steps overshoot; 0 in pure noise. Measured: the median of the
second half is -0.14 or above in healthy runs (convolutions at a constant rate), -0.2 to -0.5 in a regression
at a hundred times its best rate."""

SWINGING_HARD = -0.35
"""The same from which it is sure. Measured: no single reading of a healthy run lies below."""


def learning_rate_too_high(run: Evidence) -> Finding | None:
    r"""Overheating: bursts that v remembers, steps larger than the weights, a loss that does not fall.

    Null: N1/d = sqrt(2/pi) = 0.798 for Gaussian gradients and r = 1 at equilibrium. Both also fall where a
    network interpolates, since gradients then vanish while v remembers them: with gradients in proportion to
    the loss, energy C/d falls as the squared loss does. What the loss explains is not counted:
    :math:`(L_{late}/L_{first})^2` above C/d is needed. Beyond that either the learning rate is
    :data:`OVERSIZED` against the weights at the start, or the loss rose (:data:`RISEN`) or stayed
    (:data:`UNLEARNED`) at a third of that rate. HIGH, but MEDIUM on the rate alone where no loss was
    reported. A loss that rose to the square of :data:`RISEN` at such a rate needs no bursts beside it.
    """
    if not run.enough:
        return None
    gaussianity, r, energy = (run.late_median(q) for q in ("gaussianity", "r", "energy_ratio"))
    rate = run.relative_rate()
    peak, left = run.loss_ratios()
    worse = peak > RISEN or left > UNLEARNED
    if peak > RISEN**2 and rate >= OVERSIZED:
        confidence = "HIGH"
    elif not (gaussianity < INTERMITTENT and r < CALM) or left**2 < energy:
        return None
    elif rate >= OVERSIZED:
        confidence = "MEDIUM" if math.isnan(left) else "HIGH"
    elif worse and rate >= OVERSIZED / 3:
        confidence = "HIGH"
    else:
        return None
    loss = "" if math.isnan(left) else f", and the loss is at {left:.2g} of its first value"
    loss += f" after a peak of {peak:.2g} of it" if peak > RISEN else ""
    return Finding(
        "learning_rate_too_high",
        confidence,
        f"gradients come in bursts (gaussianity {gaussianity:.2g}, r {r:.2g}), a step at the peak rate of "
        f"{run.peak_lr:.2g} is {rate:.2g} times a weight's initial size{loss}.",
        f"Lower the learning rate by a factor of about {two_digits(rate / USUAL)}, to "
        f"{run.peak_lr * USUAL / rate:.1g}.",
        measure="gaussianity",
        effect=gaussianity,
        null=GAUSSIAN,
        interval=run.late_interval("gaussianity"),
        readings=int(run.late.sum()),
    )


def learning_rate_too_low(run: Evidence) -> Finding | None:
    r"""Coherent drift for long: every step agrees with those before, and the weights hardly turn.

    Null: r = 1 and a cosine of gradient and moment of 0 at equilibrium. Only readings at half the peak rate
    or more count, and none while it still rises: a warm-up and the end of a cooling are slow on purpose. HIGH
    with r above 2 in the median, MEDIUM above :data:`COHERENT`; the cosine must be above :data:`ALIGNED` in
    nine readings of ten and the angular step below :data:`STILL`.
    """
    if not run.enough:
        return None
    lr = run.total("lr_eff")
    # not while the rate still rises: it is to be seen what it leads to
    if not lr[-1] <= 1.01 * lr[-1 - MIN_READINGS // 2]:
        return None
    hot = lr >= 0.5 * run.peak_lr
    r, cosine, angular = (run.total(q)[hot] for q in ("r", "rho_momentum", "angular_step"))
    r, cosine, angular = (x[len(x) // 4 :] for x in (r, cosine, angular))
    if len(r) < MIN_READINGS or not (median(r) > COHERENT and median(angular) < STILL):
        return None
    if not np.quantile(cosine, 0.1) > ALIGNED:
        return None
    factor = min(USUAL / run.relative_rate(), 3e-3 / median(angular))
    if not factor > 1:
        return None
    return Finding(
        "learning_rate_too_low",
        "HIGH" if median(r) > 2 else "MEDIUM",
        f"updates drift in one direction (r {median(r):.2g}, cosine of gradient and moment "
        f"{median(cosine):.2g}) for {len(r)} readings, and weights turn by {median(angular):.1e} a step.",
        f"Raise the learning rate, if trained from scratch up to {two_digits(factor)} times "
        f"({run.peak_lr * factor:.1g}).",
        measure="r",
        effect=median(r),
        null=1.0,
        interval=mean_interval(r),
        readings=len(r),
    )


def momentum_overdamped(run: Evidence) -> Finding | None:
    r"""Momentum that averages over so long that the signal stands far above the noise left in it.

    Null: coherence :math:`\|U\|^2/(C\,n_0)` is 1 in pure noise at every beta1. The memory follows from the
    readings, :math:`n_0 = 4\varphi^*/(\eta d)` (:func:`momentum_memory`). With a signal to
    noise ratio x per step in the gradient, coherence is :math:`(x+n_0)/(n_0(1+x))`; the memory at which both
    are equal in the moment is :math:`(1+x)/(2x)`, and longer ones only answer later. HIGH above
    :data:`LONG_MEMORY` steps with coherence above :data:`DRIFT`.
    """
    if not run.enough or not len(run.layer_steps):
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = 4 * run.layers("phi_star")[-1] / (run.layers("lr_eff")[-1] * run.layers("numel")[-1])
    shares = shares[np.isfinite(shares) & (shares > 0)]
    if len(shares) == 0:
        return None
    n0 = float(shares.max())  # sparse layers (an embedding) have fewer elements that count
    memory = momentum_memory(n0, int(run.layer_steps[-1]))
    coherence = run.late_median("coherence")
    if not (memory > LONG_MEMORY and coherence > DRIFT):
        return None
    x = n0 * (coherence - 1) / max(1 - n0 * coherence, n0)
    enough = max(10.0, (1 + x) / (2 * x))
    return Finding(
        "momentum_overdamped",
        "HIGH",
        f"momentum averages over {two_digits(memory)} steps, and what it holds is {coherence:.2g} times what "
        "noise would leave: it answers late to a gradient that could be followed.",
        f"Lower beta1 to about {1 - 1 / enough:.2g}.",
        measure="coherence",
        effect=coherence,
        null=1.0,
        interval=run.late_interval("coherence"),
        readings=int(run.late.sum()),
    )


def momentum_memory(n0: float, t: int) -> float:
    r"""Solve :math:`n_0(t) = \frac{(1-\beta_1)(1+\beta_1^t)}{(1+\beta_1)(1-\beta_1^t)}` for 1/(1 - beta1).

    With :math:`\beta_1 = e^{-a}` that is :math:`\tanh(a/2)/\tanh(at/2)`, which rises with a. Averages of n0
    over past steps are a little larger than at t, so a memory beyond the steps taken reads smaller than it
    is.

    Args:
        n0: mean squared update of one element in pure noise (:func:`thermoopt.physics.null_update_energy`).
        t: step count.

    Returns:
        The memory in steps; infinite where n0 is 1/t or less, that of a plain mean.
    """
    if n0 * t <= 1:
        return math.inf
    low, high = 0.0, 50.0
    for _ in range(100):
        a = (low + high) / 2
        low, high = (low, a) if math.tanh(a / 2) / math.tanh(a * t / 2) > n0 else (a, high)
    return -1 / math.expm1(-(low + high) / 2)


def oscillation(run: Evidence) -> Finding | None:
    r"""Steps that overshoot: the fresh gradient points against the way come.

    Null: the cosine of gradient and moment is 0 in pure noise, with a standard error of
    :math:`1/\sqrt{d}` a step, negligible for a network; in a stationary valley it is slightly negative. Where
    an optimizer has no moments, the tracked cosine of successive gradients stands in. MEDIUM with the
    interval below :data:`SWINGING`, HIGH below :data:`SWINGING_HARD`.
    """
    if run.late.sum() < MIN_READINGS:
        return None
    measure = "rho_momentum" if math.isfinite(run.late_median("rho_momentum")) else "rho"
    cosine, interval = run.late_median(measure), run.late_interval(measure)
    if not (cosine < SWINGING and interval[1] < SWINGING):
        return None
    return Finding(
        "oscillation",
        "HIGH" if interval[1] < SWINGING_HARD else "MEDIUM",
        f"gradients point against the steps before them (cosine {cosine:.2g}).",
        "Halve the learning rate, or lower beta1 if it is above 0.9.",
        measure=measure,
        effect=cosine,
        null=0.0,
        interval=interval,
        readings=int(run.late.sum()),
    )
