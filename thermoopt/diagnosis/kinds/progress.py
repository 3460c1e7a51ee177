"""A kind of finding about what was learned: that it was lost again."""

from __future__ import annotations

import math

import numpy as np

from thermoopt.diagnosis.evidence import MIN_READINGS, Evidence, median
from thermoopt.diagnosis.finding import Finding, two_digits

__all__ = ["progress_lost"]

LOST = 0.5
"""Share of what the loss had gained from which on it counts as lost. The reverse gear's, for the same reason:
a run that keeps less than half of its gain is not about to come back by itself."""

ALL = 0.8
"""The same, for HIGH: the network is about where it began."""

ABOVE_NOISE = 4.0
"""Fluctuations of single losses that a mean loss must have risen by: means of five or more, as compared here,
fluctuate by less than half of one."""

FADED = 0.2
"""Force at the end over the force where the loss was lowest, from which on gradients count as faded. Measured
by this project: 0.003 to 0.1 where deep stacks of layers had saturated. Where data or targets change, losses
rise and forces with them; where a network interpolates, forces fall and losses with them."""


def progress_lost(run: Evidence) -> Finding | None:
    r"""A loss that fell, rose again and stays, while the gradients that would lower it have faded.

    Null: 0 of the gain is lost; a loss that fluctuates loses some of it, a task that changes all. So both are
    asked for: half of the gain is gone, by more than fluctuations explain, and the force, entropy production
    per unit of learning rate (:math:`\sigma/\eta`, for Adam's steps the gradient's size), is a fifth of what
    it was where the loss was lowest, or less. A network whose units have saturated or died shows this; it
    seldom comes back. HIGH if :data:`ALL` of the gain is gone, else MEDIUM.
    """
    steps, loss = run.loss_steps[: len(run.loss)], run.loss
    known = np.isfinite(loss)
    steps, loss = steps[known], loss[known]
    if not run.enough or len(loss) < 2 * MIN_READINGS:
        return None
    width = max(MIN_READINGS // 2, len(loss) // 20)
    mean = np.convolve(loss, np.full(width, 1 / width), mode="valid")
    noise = float(np.abs(np.diff(loss)).mean())
    lowest = int(mean.argmin())
    best, late = float(mean[lowest]), float(mean[-1])
    gain = float(loss[:3].mean()) - best
    lost = (late - best) / gain if gain > 0 else math.nan
    if not (lost >= LOST and late - best > ABOVE_NOISE * noise):
        return None
    then, end = int(steps[lowest + width // 2]), int(steps[-1])
    with np.errstate(all="ignore"):
        force = run.total("sigma") / run.total("lr_eff")
    near = np.abs(run.steps - then) <= max(MIN_READINGS, (end - int(steps[0])) // 20)
    since = run.steps >= end - (end - then) // 2
    faded = median(force[since]) / median(force[near])
    if not 0 <= faded <= FADED:
        return None
    return Finding(
        "progress_lost",
        "HIGH" if lost >= ALL else "MEDIUM",
        f"the loss fell to {two_digits(best)} by step {then} and is at {two_digits(late)} now: {lost:.0%} of "
        f"the gain is lost, and the gradients have faded to {two_digits(faded)} of what they were.",
        f"Go back to a checkpoint from before step {then}, or start again, at a learning rate lowered by a "
        "factor of about 3.",
        measure="share of the gain lost",
        effect=lost,
        null=0.0,
        readings=run.n,
    )
