"""Kinds of finding about what was learned: that it was lost again, and that there is nothing."""

from __future__ import annotations

import math

import numpy as np

from thermoopt.account import running_mean
from thermoopt.diagnosis.evidence import MIN_READINGS, Evidence, last_quarter, median
from thermoopt.diagnosis.finding import Finding, two_digits

__all__ = ["nothing_learned", "progress_lost"]

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

FLAT = (0.96, 1.15)
"""Mean of the last quarter of the losses over the first ones, between which a loss counts as where it began.
Measured by this project on 57 kinds of networks at rates from far too low to far too high: 0.96 to 1.03 in 21
runs that ended at chance, below 0.95 in 237 others. Beyond 1.15 it has risen, and other kinds say why."""

EVER = 0.8
"""Running mean of ten losses over the first ones, below which something had been learned once."""

QUIET = 0.05
"""Mean change from one loss to the next, over the first ones, up to which a loss counts as level. Measured in
the same runs: 0.003 to 0.03. A loss whose targets move (values, policies, networks that play against each
other) is seldom so quiet."""

TURNED = 0.3
"""Way of the matrix that turned most, in radians, from which on a network has been trained at all."""

EARLY = 300
"""Steps without which a run of unknown length is too young to tell; of a known length, half of it."""


def progress_lost(run: Evidence) -> Finding | None:
    r"""A loss that fell, rose again and stays, while the gradients that would lower it have faded.

    Null: 0 of the gain is lost; a loss that fluctuates loses some of it, a task that changes all. So both are
    asked for: half of the gain is gone, by more than fluctuations explain, and the force, entropy production
    per unit of learning rate (:math:`\sigma/\eta`, for Adam's steps the gradient's size), is a fifth of what
    it was where the loss was lowest, or less. A network whose units have saturated or died shows this; it
    seldom comes back. HIGH if :data:`ALL` of the gain is gone, else MEDIUM; LOW for a loss that fell from
    above 0 to below: differences of energies or scores (a Boltzmann machine, a critic) come back to 0.
    """
    steps, loss = run.loss_steps[: len(run.loss)], run.loss
    known = np.isfinite(loss)
    steps, loss = steps[known], loss[known]
    if not run.enough or len(loss) < 2 * MIN_READINGS:
        return None
    width = max(MIN_READINGS // 2, len(loss) // 20)
    mean = running_mean(loss, width)
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
        "LOW" if best < 0 < best + gain else "HIGH" if lost >= ALL else "MEDIUM",
        f"the loss fell to {two_digits(best)} by step {then} but is now at {two_digits(late)}: {lost:.0%} of "
        f"the gain is lost, and gradients have faded to {two_digits(faded)} times their size back then.",
        f"Go back to a checkpoint from before step {then}, or start again, with the learning rate lowered by "
        "a factor of about 3.",
        measure="share of the gain lost",
        effect=lost,
        null=0.0,
        readings=run.n,
    )


def nothing_learned(run: Evidence) -> Finding | None:
    r"""A loss that is where it began, and level, though the weights have moved.

    Null: the mean of the last quarter of the losses over where they began (the first one or the mean of the
    first three, whichever is less: a first step may throw them up) is below :data:`FLAT` where anything is
    learned. What else is asked for: it was never below :data:`EVER`, successive losses differ by less than
    :data:`QUIET` of it, as at chance, one matrix at least has turned by :data:`TURNED` in all (the sum of its
    angular steps; trained weights that are fine-tuned seldom do), and half of the run is over, or
    :data:`EARLY` steps. A network whose first steps were too large, or whose signals fade on their way, shows
    this; one on a plateau, too, and networks that play against each other. So it is never more than LOW.
    """
    finite = run.finite_loss
    old = run.taken >= EARLY if run.length is None else 2 * run.taken >= run.length
    if not (run.enough and old and len(finite) >= 4 * MIN_READINGS):
        return None
    first, last = min(float(finite[0]), float(finite[:3].mean())), last_quarter(finite)
    if not first > 0:
        return None
    left, fluctuation = float(last.mean()) / first, float(np.abs(np.diff(last)).mean()) / first
    lowest = float(running_mean(finite, 10).min()) / first
    if not (FLAT[0] <= left <= FLAT[1] and lowest >= EVER and fluctuation <= QUIET):
        return None
    turns = np.nan_to_num(run.layers("angular_step")) * run.layer_spans[:, None]
    way = float(turns.sum(axis=0)[run.matrix].max(initial=0.0))
    if not way >= TURNED:
        return None
    return Finding(
        "nothing_learned",
        "LOW",
        f"the loss is where it began ({two_digits(first)} at first, {two_digits(float(last.mean()))} now), "
        f"although weights have turned by up to {two_digits(way)} radians.",
        "Start again with the learning rate lowered by a factor of 3 to 10, or with a longer warm-up. If "
        "that does not help, check that inputs and targets match, and that signals get through all layers "
        "(initialisation, normalisation, skip connections). Ignore this for GANs and games, whose losses "
        "need not fall.",
        measure="last losses over the first",
        effect=left,
        null=FLAT[0],
        readings=run.n,
    )
