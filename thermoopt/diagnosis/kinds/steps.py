"""Kinds of finding about gradients as such."""

from __future__ import annotations

import math

import numpy as np

from thermoopt.diagnosis.evidence import Evidence
from thermoopt.diagnosis.finding import Finding, two_digits

__all__ = ["gradient_noise", "non_finite_steps"]

SILENT = 0.025
"""Cosine of gradient and moment that no reading of a run drowned in noise exceeds, either way. Measured,
largest of a run: 0.04 and more in healthy runs, since training drifts at first and swings later; 0.02 and
less where noise has 30 times the gradient's norm."""

EARLY = 0.1
"""Share of the run so far by which the first reading must have come: what came before may have been drift."""

OVERFLOWS = 0.1
"""Share of measured steps that a gradient scaler may skip: it tries a doubled scale every 2000 steps and
needs some at first."""

FEW = 5
"""Skipped steps that say nothing."""


def gradient_noise(run: Evidence) -> Finding | None:
    r"""Noise drowns the gradient: never in the run did two steps agree or disagree.

    Null of the *disease*: in pure noise the cosine of gradient and moment is 0 :math:`\pm 1/\sqrt d`. Healthy
    runs reach that late (r = 1 is their equilibrium), but drift at first: so every reading counts, from the
    start on. With x the gradient's signal to noise ratio, the cosine is :math:`x/\sqrt{(1+x)(x+n_0)}`; the
    largest one seen gives the largest x that is possible, and a batch 1/x times as large would balance both.
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
    n0 = 0.0526  # of beta1 = 0.9, which the size of the advice can take
    factor = 1 / max(largest * math.sqrt(n0), 1e-4)
    return Finding(
        "gradient_noise",
        "MEDIUM",
        f"gradients never agreed with those before them (cosine with the moment at most {largest:.1e} in "
        f"{len(cosine)} readings): signal is at most {1 / factor:.1e} of their energy.",
        f"Noise and signal balance at a batch {two_digits(factor)} times as large or more; if that cannot be "
        "had, lower the learning rate or the noise.",
        measure="rho_momentum",
        effect=largest,
        null=0.0,
        interval=(float(cosine.min()), float(cosine.max())),
        readings=len(cosine),
    )


def non_finite_steps(run: Evidence) -> Finding | None:
    """Gradients, weights or losses that are not finite.

    Null: none. One non-finite gradient in an unguarded AdamW step makes weights and moments NaN for good, so
    every later measured step counts too. HIGH, but MEDIUM where steps were measured after the only one, and
    for a gradient scaler that skips more than :data:`OVERFLOWS` of the steps.
    """
    bad = run.skipped.get("nonfinite", 0)
    if bad or run.bad_losses:
        once = bad + run.bad_losses == 1
        return Finding(
            "non_finite_steps",
            "MEDIUM" if once else "HIGH",
            f"{bad} measured steps and {run.bad_losses} losses were not finite"
            + (f"; the last that was is step {int(run.steps[-1])}." if run.n else "."),
            "Go back to a checkpoint before it; look at the loss for a logarithm or a division of 0, clip "
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
            f"the gradient scaler skipped {overflows} measured steps for infinities, {run.n} went well.",
            "Use bfloat16, or clip gradients after unscaling them.",
            measure="found_inf",
            effect=float(overflows),
            null=0.0,
            readings=run.n,
        )
    return None
