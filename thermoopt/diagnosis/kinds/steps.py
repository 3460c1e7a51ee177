"""Kinds of finding about gradients as such."""

from __future__ import annotations

import math

import numpy as np

from thermoopt.diagnosis.evidence import MIN_READINGS, Evidence, median
from thermoopt.diagnosis.finding import Finding, two_digits
from thermoopt.diagnosis.kinds.rates import OVERSIZED, UNLEARNED, surety

__all__ = ["gradient_noise", "gradients_below_eps", "no_gradients", "non_finite_steps"]

SWALLOWED = 0.01
r"""Energy :math:`g^2/(\sqrt{\hat v}+\epsilon)^2` below which eps or an old burst sets the size of steps. 1
while gradients last; never below the square of gaussianity (Jensen), at least 0.15 in healthy runs
(:data:`~thermoopt.diagnosis.kinds.rates.INTERMITTENT`): 0.02."""

ABOVE = 100.0
"""Size of gradients over eps that the advice aims for, since they fall in the course of a run: a small
network ends at twice the loss at 10, and at the loss of a larger factor at 100."""

SILENT = 0.025
"""Magnitude of the cosine of gradient and moment that no reading of a run drowned in noise exceeds. Measured,
largest in a run: at least 0.04 in healthy runs, since training drifts at first and oscillates later; at most
0.02 where noise has 30 times the gradient's norm."""

EARLY = 0.1
"""Fraction of the run so far by which the first reading must have come: an earlier drift may have gone
unseen."""

OVERFLOWS = 0.1
"""Fraction of measured steps that a gradient scaler may skip: it tries a doubled scale every 2000 steps and
skips some at the start."""

FEW = 5
"""This many skipped steps or fewer mean nothing."""


def no_gradients(run: Evidence) -> Finding | None:
    """A run that goes on after the last gradient: the optimizer holds other tensors than the model.

    Null: none, a step without a gradient moves nothing. The confidence is that of ``learning_rate_zero``
    (:func:`.rates.surety`), not counting the steps in which no reading was due. For a run without any
    reading, the report says why there is none.
    """
    if run.n == 0 or run.skipped.get("no_gradients", 0) == 0:
        return None
    last = int(run.steps[-1])
    idle = run.taken - last
    confidence = surety(idle, run.taken, MIN_READINGS + int(np.diff(run.steps).max(initial=0)))
    if confidence is None:
        return None
    return Finding(
        "no_gradients",
        confidence,
        f"no parameter has had a gradient since about step {last + 1}: {idle} of {run.taken} steps moved "
        "nothing.",
        "Call backward() before step(). If the model's tensors were replaced (load_state_dict with "
        "assign=True, to_empty, a new model), the optimizer still holds the old ones: create it from the "
        "new ones.",
        measure="steps without a gradient",
        effect=float(idle),
        null=0.0,
        readings=run.n,
    )


def gradient_noise(run: Evidence) -> Finding | None:
    r"""Noise drowns the gradient: at no time in the run did steps agree or disagree.

    Null of the *disease*: in pure noise the cosine of gradient and moment is 0 :math:`\pm 1/\sqrt d`. Healthy
    runs get there late (r = 1 is their equilibrium) but drift at first, so every reading from the start
    counts. With signal-to-noise ratio x of the gradient, the cosine is :math:`x/\sqrt{(1+x)(x+n_0)}`; its
    largest value gives the largest possible x, and a batch 1/x times as large would balance signal and noise.
    MEDIUM.
    """
    if not run.enough or run.steps[0] > EARLY * run.taken:
        return None
    cosine = run.total("rho_momentum")
    cosine = cosine[np.isfinite(cosine)]
    if len(cosine) < run.n // 2:
        return None
    largest = float(np.abs(cosine).max())
    if largest > SILENT:
        return None
    n0 = 0.0526  # at beta1 = 0.9: accurate enough for this advice
    factor = 1 / max(largest * math.sqrt(n0), 1e-4)
    return Finding(
        "gradient_noise",
        "MEDIUM",
        f"in {len(cosine)} readings gradients never agreed with earlier ones (cosine with the moment at most "
        f"{largest:.1e}): at most {1 / factor:.1e} of their energy is signal.",
        "Check that targets belong to their inputs. If they do, signal and noise would balance only at a "
        f"batch at least {two_digits(factor)} times as large; if that is out of reach, lower the learning "
        "rate or reduce the noise.",
        measure="rho_momentum",
        effect=largest,
        null=0.0,
        interval=(float(cosine.min()), float(cosine.max())),
        readings=len(cosine),
    )


def gradients_below_eps(run: Evidence) -> Finding | None:
    r"""Gradients so small that eps instead of v sets the size of a step, and nothing is learned.

    Null: the energy :math:`g^2/(\sqrt{\hat v}+\epsilon)^2` is 1 on average while gradients last. It also
    falls when gradients do, as in a run that converges. Therefore nine of ten readings, from the start on,
    must lie below :data:`SWALLOWED`, the loss must have stayed
    (:data:`~thermoopt.diagnosis.kinds.rates.UNLEARNED`), and the rate must not overheat. HIGH, but MEDIUM if
    no loss was reported. For gradients well below eps the energy is :math:`(g/\epsilon)^2`, from which the
    advice follows.
    """
    if not run.enough or run.steps[0] > EARLY * run.taken:
        return None
    energy = run.total("energy_ratio")
    energy = energy[np.isfinite(energy)]
    left = run.loss_ratios()[1]
    if len(energy) < run.n // 2 or not np.quantile(energy, 0.9) < SWALLOWED or not energy.max() > 0:
        return None
    if left <= UNLEARNED or run.relative_rate() >= OVERSIZED / 3:
        return None
    share = math.sqrt(float(np.median(energy)))
    rms = median(run.total("grad_norm") / np.sqrt(run.total("numel")))
    loss = "" if math.isnan(left) else f"; the loss is at {left:.2g} times its first value"
    return Finding(
        "gradients_below_eps",
        "MEDIUM" if math.isnan(left) else "HIGH",
        f"steps are only {share:.1e} times their usual size: gradients (rms {rms:.1e}) lie below eps, or far "
        f"below earlier ones that v still remembers{loss}.",
        f"Multiply the loss by {two_digits(ABOVE / max(share, 1e-300))} or divide eps by the same factor. If "
        "the first gradients were far larger than the later ones, clip them or lower beta2.",
        measure="energy_ratio",
        effect=share**2,
        null=1.0,
        interval=run.late_interval("energy_ratio"),
        readings=len(energy),
    )


def _counted(steps: int, losses: int) -> str:
    parts = ((steps, "measured step", "s"), (losses, "reported loss", "es"))
    return " and ".join(f"{n} {what}{ending * (n != 1)}" for n, what, ending in parts if n)


def non_finite_steps(run: Evidence) -> Finding | None:
    """Gradients, weights or losses that are not finite.

    Null: none occur. One non-finite gradient in an unguarded AdamW step makes weights and moments NaN for
    good, so every later measured step counts too. HIGH, but MEDIUM for a single occurrence and for a gradient
    scaler that skips more than :data:`OVERFLOWS` of the steps.
    """
    bad = run.skipped.get("nonfinite", 0)
    if bad or run.bad_losses:
        once = bad + run.bad_losses == 1
        return Finding(
            "non_finite_steps",
            "MEDIUM" if once else "HIGH",
            f"{_counted(bad, run.bad_losses)} contained NaN or infinity"
            + (f"; the last finite reading is of step {int(run.steps[-1])}." if run.n else "."),
            "Go back to an earlier checkpoint. Check the loss for a logarithm of 0 or a division by 0, clip "
            "gradients, or lower the learning rate.",
            measure="non-finite steps",
            effect=float(bad + run.bad_losses),
            null=0.0,
            readings=run.n,
        )
    overflows = run.skipped.get("found_inf", 0)
    if overflows > FEW and overflows > OVERFLOWS * (run.n + overflows):
        return Finding(
            "non_finite_steps",
            "MEDIUM",
            f"the gradient scaler skipped {overflows} measured steps because gradients overflowed; {run.n} "
            "succeeded.",
            "Use bfloat16, or clip gradients after unscaling them.",
            measure="found_inf",
            effect=float(overflows),
            null=0.0,
            readings=run.n,
        )
    return None
