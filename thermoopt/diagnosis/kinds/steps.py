"""Kinds of finding about gradients as such."""

from __future__ import annotations

import math

import numpy as np

from thermoopt.diagnosis.evidence import Evidence
from thermoopt.diagnosis.finding import Finding, two_digits

__all__ = ["gradient_noise", "non_finite_steps"]

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
        f"gradients never agreed with those before them (cosine with the moment at most {largest:.1e} in "
        f"{len(cosine)} readings): signal is at most {1 / factor:.1e} of their energy.",
        f"Noise and signal balance at a batch at least {two_digits(factor)} times as large; if that is out "
        "of reach, lower the learning rate or the noise.",
        measure="rho_momentum",
        effect=largest,
        null=0.0,
        interval=(float(cosine.min()), float(cosine.max())),
        readings=len(cosine),
    )


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
            f"{bad} measured steps and {run.bad_losses} losses were not finite"
            + (f"; the last finite step is {int(run.steps[-1])}." if run.n else "."),
            "Go back to an earlier checkpoint; check the loss for a logarithm of 0 or a division by 0, clip "
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
            f"the gradient scaler skipped {overflows} measured steps because of infinities; {run.n} "
            "succeeded.",
            "Use bfloat16, or clip gradients after unscaling them.",
            measure="found_inf",
            effect=float(overflows),
            null=0.0,
            readings=run.n,
        )
    return None
