"""Kinds of finding about the learning rate and the momentum."""

from __future__ import annotations

import math

import numpy as np

from thermoopt.diagnosis.evidence import MIN_READINGS, Evidence, mean_interval, median
from thermoopt.diagnosis.finding import Finding, two_digits
from thermoopt.physics import GAUSSIAN, LR, LR_TIMES_D, NO_LR

__all__ = [
    "learning_rate_runaway",
    "learning_rate_too_high",
    "learning_rate_too_low",
    "learning_rate_zero",
    "momentum_memory",
    "momentum_overdamped",
    "oscillation",
    "stopped_uncooled",
    "surety",
]

INTERMITTENT = 0.25
"""Gaussianity N1/d below which gradients come in bursts that v remembers; 0.798 is Gaussian. Measured: at
least 0.15 in healthy runs, except for convolutions at three times their best rate (0.06 to 0.11); at most
0.16 at a hundred times the best rate."""

RUNAWAY = 30.0
"""The same ratio from which it is sure whatever else is to be seen: ten times :data:`OVERSIZED`; runs at a
hundred times their best rate have 5 to 45."""

STOOD = 0.1
"""Share of a run at learning rate 0 from which that is sure to be no mere end."""

COOLED = 0.1
"""Share of the peak rate up to which a run counts as cooled: people end a cosine there (arXiv 2203.15556)."""

CALM = 0.6
"""r above which an update is not small compared with its own equilibrium. Measured: below 0.5 at a hundred
times the best rate."""

OVERSIZED = 3.0
"""Learning rate over a matrix's initial rms from which a single Adam step replaces the weights altogether.
Measured, median over matrices: 0.02 to 1.4 in healthy runs within a factor of 3 of the best rate, except for
a regression whose weights have to grow 40 times; 5 to 45 at a hundred times the best rate."""

USUAL = 0.1
"""The ratio that the advice aims for: at the best rate of five of six workloads it is 0.05 to 0.45."""

RISEN = 1.5
"""Running mean of ten losses over the first loss from which the run made things worse. Measured: at most 1.1
in healthy runs with warm-up, 1.4 to 33,000 in four of six workloads at a hundred times the best rate."""

UNLEARNED = 0.9
"""Fraction of the first loss that remains in the last quarter of a run that learned nothing. Measured:
healthy runs are at 0.68 or below after 400 steps."""

COHERENT = 1.5
"""r above which drift outweighs equilibrium (1), for ``learning_rate_too_low``."""

ALIGNED = 0.1
"""Cosine of gradient and moment above which a drift persists; 0 in pure noise. Measured: above 0.11 in every
reading at a thousandth of the best rate."""

STILL = 5e-4
"""Radians per step below which a run hardly moves: a sixth of the 3e-3 to 9e-3 of runs from scratch at their
best rate (this project's measurements), and just below the 6e-4 of fine-tuning."""

LONG_MEMORY = 60.0
"""Memory of momentum, 1/(1 - beta1) in steps, from which its benefit is checked: six times the usual 10, and
above the 50 of beta1 0.98."""

DRIFT = 2.0
"""Coherence above which a moment holds more signal than noise (1 in pure noise, whatever beta1).
Measured: 3.2 to 20 at beta1 0.999; 0.74 to 1.6 at 0.9."""

SWINGING = -0.25
"""Cosine of gradient and moment below which steps overshoot; 0 in pure noise. Measured: the median of the
second half is -0.14 or above in healthy runs (convolutions at a constant rate), -0.2 to -0.5 in a regression
at a hundred times its best rate."""

SWINGING_HARD = -0.35
"""The same, for HIGH. Measured: no single reading of a healthy network of the validation lies below; spline
flows and some function fits are at -0.3 to -0.6 at their best rate, where half of it ends no lower."""


def surety(steps: float, of: float, least: float = MIN_READINGS) -> str | None:
    """Return the confidence that steps were wasted, HIGH from :data:`STOOD` of a run on, or None.

    Args:
        steps: number of wasted steps.
        of: number of steps in all.
        least: fewer wasted steps than this, or than a tenth of :data:`STOOD`, are no finding.
    """
    if steps < least or steps < STOOD / 10 * of:
        return None
    return "HIGH" if steps >= STOOD * of else "MEDIUM"


def learning_rate_too_high(run: Evidence) -> Finding | None:
    r"""Overheating: bursts that v remembers, steps larger than the weights, a loss that does not fall.

    Null: N1/d = sqrt(2/pi) = 0.798 for Gaussian gradients and r = 1 at equilibrium. Both also fall when a
    network interpolates, since gradients then vanish while v remembers them: if gradients are proportional to
    the loss, the energy C/d falls like the squared loss. A fall that the loss explains does not count:
    :math:`(L_{late}/L_{first})^2` must exceed C/d. In addition, either the learning rate must be
    :data:`OVERSIZED` relative to the initial weights, or the loss must have risen (:data:`RISEN`) or stayed
    (:data:`UNLEARNED`) at a third of that rate. HIGH, but MEDIUM on the rate alone if no loss was reported.
    Without bursts, it is enough that the loss rose to the square of :data:`RISEN` at an oversized rate, or
    that it ended there at a third of one: what had to relax has had the rest of the run to do so.
    """
    if not run.enough:
        return None
    gaussianity, r, energy = (run.late_median(q) for q in ("gaussianity", "r", "energy_ratio"))
    rate = run.relative_rate()
    peak, left = run.loss_ratios()
    worse = peak > RISEN or left > UNLEARNED
    if (peak > RISEN**2 and rate >= OVERSIZED) or (left > RISEN**2 and rate >= OVERSIZED / 3):
        confidence = "HIGH"
    elif not (gaussianity < INTERMITTENT and r < CALM) or left**2 < energy:
        return None
    elif rate >= OVERSIZED and 0 < np.isfinite(run.loss).sum() < 2 * MIN_READINGS:
        return None  # losses come, but are too few to tell: a record holds one a reading
    elif rate >= OVERSIZED:
        confidence = "MEDIUM" if math.isnan(left) else "HIGH"
    elif worse and rate >= OVERSIZED / 3:
        confidence = "HIGH"
    else:
        return None
    loss = "" if math.isnan(left) else f"; the loss is at {left:.2g} times its first value"
    loss += f", after a peak at {peak:.2g} times" if peak > RISEN else ""
    peak_rate, lower = _words(run, rate / USUAL)
    bursts = gaussianity < INTERMITTENT
    seen = f"gradients come in bursts (gaussianity {gaussianity:.2g}, r {r:.2g}); " if bursts else ""
    return Finding(
        "learning_rate_too_high",
        confidence,
        f"{seen}one step at {peak_rate} is {rate:.2g} times the initial size of a weight{loss}.",
        f"Lower {lower}.",
        measure="gaussianity" if bursts else "step over initial weight",
        effect=gaussianity if bursts else rate,
        null=GAUSSIAN if bursts else USUAL,
        interval=run.late_interval("gaussianity") if bursts else (math.nan, math.nan),
        readings=int(run.late.sum()),
    )


def learning_rate_runaway(run: Evidence) -> Finding | None:
    """A rate at which every step replaces the weights many times over, whatever else the run shows.

    Null: :data:`USUAL`. It needs no losses, and explains what else such a run shows: decay at that rate
    erases weights, and numbers overflow. HIGH above :data:`RUNAWAY`; LOW if the reported losses keep what
    they gained (:meth:`~thermoopt.diagnosis.evidence.Evidence.keeps_gain`): weights that start close to 0,
    such as coordinates or hash tables, soon reach the size they need.
    """
    if run.n == 0:
        return None
    rate = run.relative_rate()
    if not rate > RUNAWAY:
        return None
    lr = run.total("lr_eff")
    at = int(run.steps[int(np.nanargmax(lr))]) if np.isfinite(lr).any() else 0
    peak_rate, lower = _words(run, rate / USUAL)
    when = "" if run.rate_kind == NO_LR else f", at step {at},"
    own = "" if run.rate_kind == LR else ", the optimizer's own estimate"
    kept = run.loss_ratios()[0] <= RISEN and run.keeps_gain(UNLEARNED)
    advice = f"Lower {lower}, and bound whatever raised it (a controller, a schedule, a search{own})."
    return Finding(
        "learning_rate_runaway",
        "LOW" if kept else "HIGH",
        f"one step at {peak_rate}{when} is {two_digits(rate)} times the initial size of a weight"
        + (", but the loss keeps what it has gained." if kept else "."),
        "Nothing needs fixing if weights start close to 0 on purpose." if kept else advice,
        measure="step over initial weight",
        effect=rate,
        null=USUAL,
        readings=run.n,
    )


def _words(run: Evidence, factor: float) -> tuple[str, str]:
    """Name the peak rate, and the setting to divide by a factor, with the effective rate that results."""
    by, to = f"by a factor of about {two_digits(factor)}", f"{run.peak_lr / factor:.1g}"
    if run.rate_kind == NO_LR:
        return (
            "the rate that the optimizer finds (unknown: its groups hold no lr)",
            f"the size of its steps {by}",
        )
    if run.rate_kind == LR_TIMES_D:
        return (
            f"the peak effective rate of {run.peak_lr:.2g} (lr times the d that the optimizer finds)",
            f"lr {by}, which lowers the effective rate to {to}",
        )
    return f"the peak rate of {run.peak_lr:.2g}", f"the learning rate {by}, to {to}"


def learning_rate_zero(run: Evidence) -> Finding | None:
    """A run that goes on after its learning rate has come to 0: a schedule shorter than the run.

    Null: none, at rate 0 nothing moves. HIGH from :data:`STOOD` of the run on, MEDIUM from
    :data:`MIN_READINGS` steps on.
    """
    moving = run.steps[run.total("lr_eff") != 0] if run.n else np.zeros(0)
    if len(moving) == 0:
        return None
    still = run.steps[run.steps > moving[-1]]
    first = int(still[0]) if len(still) else int(moving[-1]) + 1
    idle = run.taken - first + 1
    if len(moving) == run.n and not run.skipped.get("lr_zero"):
        return None
    apart = 0 if len(still) else np.diff(run.steps).max(initial=0)  # no reading may have been due yet
    confidence = surety(idle, run.taken, MIN_READINGS + apart)
    if confidence is None:
        return None
    return Finding(
        "learning_rate_zero",
        confidence,
        f"the learning rate has been 0 since {'' if len(still) else 'about '}step {first}: "
        f"{idle} of {run.taken} steps moved nothing.",
        "Set the schedule's length (total_steps) to that of the run, or stop when the schedule ends.",
        measure="lr_eff",
        effect=0.0,
        null=math.nan,
        readings=run.n,
    )


def stopped_uncooled(run: Evidence) -> Finding | None:
    """A run that ended before its learning rate had been cooled: a schedule longer than the run.

    Null: 0, at the end of a schedule. Only of a run that is known to have ended. HIGH if :data:`STOOD` of the
    length was left, MEDIUM from a tenth of that and :data:`MIN_READINGS` steps on, and only where the rate
    was above :data:`COOLED` of its peak: a quench may have come earlier.
    """
    if not run.ended or run.length is None or run.n == 0 or run.peak_lr == 0:
        return None
    left, share = run.length - run.taken, float(run.total("lr_eff")[-1]) / run.peak_lr
    confidence = surety(left, run.length)
    if confidence is None or not share > COOLED:
        return None
    return Finding(
        "stopped_uncooled",
        confidence,
        f"the run ended at step {run.taken} of {run.length} with the learning rate still at {share:.0%} of "
        "its peak, and so without the gain that cooling brings.",
        "Set the length of the controller or schedule to the number of optimizer steps that the run takes "
        "(epochs * batches per epoch / accumulated batches). To end a run early on purpose, call "
        "cool_now(steps) and train for that many more.",
        measure="lr_eff",
        effect=share,
        null=0.0,
        readings=run.n,
    )


def learning_rate_too_low(run: Evidence) -> Finding | None:
    r"""Long coherent drift: every step agrees with those before it, and the weights hardly turn.

    Null: at equilibrium r = 1 and the cosine of gradient and moment is 0. Only readings at half the peak rate
    or more count, and none while the rate still rises: warm-up and the end of cooling are slow on purpose.
    HIGH if the median r is above 2, MEDIUM above :data:`COHERENT`; the cosine must be above :data:`ALIGNED`
    in nine of ten readings and the angular step below :data:`STILL`.
    """
    if not run.enough:
        return None
    lr = run.total("lr_eff")
    # not while the rate still rises: its effect has yet to show
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
        f"updates drifted in one direction over {len(r)} readings (r {median(r):.2g}, cosine of gradient and "
        f"moment {median(cosine):.2g}), yet weights turn by only {median(angular):.1e} radians per step.",
        f"Raise the learning rate; when training from scratch, by a factor of up to {two_digits(factor)}, "
        f"to {run.peak_lr * factor:.1g}.",
        measure="r",
        effect=median(r),
        null=1.0,
        interval=mean_interval(r),
        readings=len(r),
    )


def momentum_overdamped(run: Evidence) -> Finding | None:
    r"""Momentum that averages over so many steps that its signal stands far above the remaining noise.

    Null: coherence :math:`\|U\|^2/(C\,n_0)` is 1 in pure noise at every beta1. The memory follows from the
    readings, :math:`n_0 = 4\varphi^*/(\eta d)` (:func:`momentum_memory`). With a signal-to-noise ratio x of a
    single gradient, coherence is :math:`(x+n_0)/(n_0(1+x))`; signal and noise in the moment are equal at the
    memory :math:`(1+x)/(2x)`, and a longer one only responds later. HIGH above :data:`LONG_MEMORY` steps
    with coherence above :data:`DRIFT`.
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
    averaged = "all steps so far" if math.isinf(memory) else f"{two_digits(memory)} steps"
    return Finding(
        "momentum_overdamped",
        "HIGH",
        f"momentum averages over {averaged}, and its energy is {coherence:.2g} times that of pure noise: the "
        "gradient is clear enough to be followed much more closely.",
        f"Lower beta1 to about {1 - 1 / enough:.2g}.",
        measure="coherence",
        effect=coherence,
        null=1.0,
        interval=run.late_interval("coherence"),
        readings=int(run.late.sum()),
    )


def momentum_memory(n0: float, t: int) -> float:
    r"""Solve :math:`n_0(t) = \frac{(1-\beta_1)(1+\beta_1^t)}{(1+\beta_1)(1-\beta_1^t)}` for 1/(1 - beta1).

    With :math:`\beta_1 = e^{-a}` the right-hand side is :math:`\tanh(a/2)/\tanh(at/2)`, which rises with a.
    Averages of n0 over past steps are slightly larger than n0(t), so a memory longer than the steps taken is
    underestimated.

    Args:
        n0: mean squared update of one element in pure noise (:func:`thermoopt.physics.null_update_energy`).
        t: step count.

    Returns:
        The memory in steps; infinite if n0 is at most 1/t, the value of a plain mean.
    """
    if n0 * t <= 1:
        return math.inf
    low, high = 0.0, 50.0
    for _ in range(100):
        a = (low + high) / 2
        low, high = (low, a) if math.tanh(a / 2) / math.tanh(a * t / 2) > n0 else (a, high)
    return -1 / math.expm1(-(low + high) / 2)


def oscillation(run: Evidence) -> Finding | None:
    r"""Steps that overshoot: the fresh gradient points against the previous steps.

    Null: the cosine of gradient and moment is 0 in pure noise, with a standard error of
    :math:`1/\sqrt{d}` per step, negligible for a network; in a stationary valley it is slightly negative. For
    an optimizer without moments, the tracked cosine of successive gradients is used instead. It is MEDIUM if
    the interval lies below :data:`SWINGING`, and HIGH only if it lies below :data:`SWINGING_HARD` and the
    loss has stayed (:data:`UNLEARNED`). Gradients may swing in a few steep directions while the others learn,
    at no cost: it is LOW where the loss has fallen and kept half of what it gained
    (:meth:`~thermoopt.diagnosis.evidence.Evidence.keeps_gain`). Measured: one of eight such fits ends lower
    at a third of its rate.
    """
    if run.late.sum() < MIN_READINGS:
        return None
    measure = "rho_momentum" if math.isfinite(run.late_median("rho_momentum")) else "rho"
    cosine, interval = run.late_median(measure), run.late_interval(measure)
    if not (cosine < SWINGING and interval[1] < SWINGING):
        return None
    left = run.loss_ratios()[1]
    lower = "Halve the learning rate, or lower beta1 if it is above 0.9."
    if run.keeps_gain(UNLEARNED):
        confidence, advice = "LOW", f"The loss fell nevertheless. Check whether this helps: {lower.lower()}"
    else:
        stayed = interval[1] < SWINGING_HARD and left > UNLEARNED
        confidence, advice = "HIGH" if stayed else "MEDIUM", lower
    return Finding(
        "oscillation",
        confidence,
        f"gradients point against the preceding steps (cosine {cosine:.2g}): steps overshoot.",
        advice,
        measure=measure,
        effect=cosine,
        null=0.0,
        interval=interval,
        readings=int(run.late.sum()),
    )
