"""Ready-made chains of controllers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from thermoopt.account.reading import Reading
from thermoopt.controllers.base import Action, Scales, Start
from thermoopt.controllers.cooling import Cooling, check_total_steps
from thermoopt.controllers.decay import Barostat
from thermoopt.controllers.lever import Lever
from thermoopt.controllers.setpoints import DRIVEN_START, START
from thermoopt.controllers.thermostat import Thermostat
from thermoopt.controllers.units import TRAINED, trained_share
from thermoopt.controllers.wrappers import Chain

__all__ = ["PRESETS", "autotune"]

PRESETS = ("default", "finetune", "respect_lr")
"""Names of the presets."""

FINETUNE_KAPPA = 0.05
"""Initial displacement for fine-tuning, in units of the weights' own size. Measured by this project on a
BERT: over 60 steps 0.1 learns nothing on one task where 0.02 and 0.04 pass AdamW at 5e-5; on another, on
which it was not chosen, 0.03 is too slow in full and staged fine-tuning (1.85 against 1.69 with 0.05). At 300
steps 0.03 and 0.1 do not differ. All of it with a linear shape; held for half of it, as now, 0.05 ends
at 0.99 of a tuned AdamW in full fine-tuning (3 seeds) and 0.1 at 1.04 (one seed)."""

SHALLOW, DEEP_KAPPA = 8, 0.2
"""Matrices up to which a new network starts at ``DRIVEN_START``, and the lowest start of deeper ones. Changes
of layers one after the other add up (Bernstein et al., arXiv 2002.03432); normalisation and skips, which an
optimizer does not see, undo that. Measured by this project on 18 networks of 8 to 62 matrices: from 0.5 they
end at 1.43 of a tuned AdamW, plain stacks of 20 layers at chance, and from 0.2 at 1.14; one, a stack with
BatchNorm, loses more than a fifth by it (benchmarks/results/families/driven.md)."""

FRESH_LAW, FINETUNE_LAW = "driven_diffusion", "bounded_diffusion"
"""Laws from fresh weights and from trained ones."""

ADAPTERS = 0.25
"""Share of the trained matrices that start at 0 from which on they count as adapters: LoRA has half of them,
beside it a few layers may be trained in full; a network fine-tuned in full has at most a new head."""

BESIDE = 0.01
"""Share of all elements below which what is trained beside a frozen body counts as new: a head is 0.1 to
0.5 % of a BERT, its last layer 6 %."""

WARMUP = 0.1
"""Share of the run that warms up. Measured by this project: 5 % leaves transformers 3 to 10 % worse at 300
to 1200 steps, and a start that is too high is forgiven while its rate is low."""

RESPECT = 4.0
"""Factor by which ``respect_lr`` may move up or down from the user's lr: the error of a hand-tuned one."""


def _new(start: Start) -> bool:
    """Whether what is trained is new and not pre-trained: adapters, as LoRA's A and B, or a head alone."""
    layers = list(zip(start.rms, start.ndim, start.numel, start.takes_gradient, strict=True))
    matrices = [rms for rms, ndim, _, own in layers if own and ndim >= 2]
    trained = sum(numel for *_, numel, own in layers if own)
    adapters = bool(matrices) and matrices.count(0.0) >= ADAPTERS * len(matrices)
    return adapters or 0 < trained < BESIDE * sum(start.numel)


def fresh_kappa(start: Start) -> float:
    r"""Return the initial displacement of a new network, in units of its weights' own size.

    .. math:: \kappa = \max\bigl(0.2,\ 0.5\,\min(1,\ 8/n)\bigr)

    If a quarter or more of the matrices are 0 (adapters, residual branches that begin at 0), or only a head
    is trained, layers do not follow one another and the displacement is 0.5 for every n.

    Args:
        start: the parameters; n is the number of those with two dimensions or more that take a gradient.

    Returns:
        kappa, dimensionless, 0.2 to 0.5.
    """
    if _new(start):
        return DRIVEN_START
    matrices = sum(own and ndim >= 2 for ndim, own in zip(start.ndim, start.takes_gradient, strict=True))
    return max(DEEP_KAPPA, DRIVEN_START * min(1.0, SHALLOW / max(1, matrices)))


class FineTuning(Thermostat):
    """A thermostat that starts at :data:`FINETUNE_KAPPA`, or, if what is trained is new, like a new network.

    Layers that join later start low.

    Adapters want about ten times the rate of full fine-tuning, whatever their rank (Schulman and Thinking
    Machines Lab, "LoRA without regret", 2025), here the rate of a network that starts anew.
    """

    def __init__(self, total_steps: int | None) -> None:
        super().__init__(FINETUNE_LAW, total_steps=total_steps, kappa=FINETUNE_KAPPA)

    def attach(self, start: Start) -> None:
        """Receive the layers; the first time in a run, see whether they are new."""
        first = not self._known
        super().attach(start)
        if first:
            _raise_new(self, start)


def _raise_new(thermostat: Thermostat, start: Start) -> None:
    """Have what is new start like a new network."""
    if _new(start):
        for cohort in thermostat._cohorts.values():
            rate = thermostat._law.start(thermostat._total_steps, kappa=START)
            cohort.lever = Lever(thermostat._bounds, rate)


class FromStart(Thermostat):
    """A thermostat that follows ``driven_diffusion`` from fresh weights, :class:`FineTuning`'s law otherwise.

    The more matrices fresh weights have, the lower they start (:func:`fresh_kappa`). Whether weights are
    trained is decided once, at the start (:func:`thermoopt.controllers.units.trained_share`), and kept in
    checkpoints; if they are, the log says so.
    """

    def __init__(self, total_steps: int | None) -> None:
        super().__init__(FRESH_LAW, total_steps=total_steps)
        self._share, self._kappa = 0.0, DRIVEN_START

    @property
    def _trained(self) -> bool:
        return self._share >= TRAINED

    def _take_for(self, share: float, kappa: float) -> None:
        """Follow the law that a share of uneven matrices calls for, or the default from ``kappa``."""
        self._share, self._kappa = share, kappa
        if self._trained:
            self._follow(FINETUNE_LAW, {"kappa": FINETUNE_KAPPA})
        else:
            self._follow(FRESH_LAW, {"kappa": kappa})

    def attach(self, start: Start) -> None:
        """Receive the layers; the first time in a run, see if they are trained, and how many there are."""
        first = not self._known
        if first:
            self._take_for(trained_share(start), fresh_kappa(start))
        super().attach(start)
        if first and self._trained:
            _raise_new(self, start)

    def update(self, reading: Reading | None, step: int) -> Scales:
        """Return the scales of the next step; the first time, log what was taken for trained."""
        first = self._trained and not self.begun
        scales = super().update(reading, step)
        if first and self.begun:
            rate = next(iter(self._cohorts.values())).lever.value
            reason = "rows of uneven size, as training leaves them: start as with preset='finetune'"
            evidence = {"uneven_share": (self._share, math.nan), "uneven_share_setpoint": (TRAINED, 0.0)}
            self._log.append(Action(step, self._called, "all", "lr", rate, rate, evidence, reason))
        return scales

    def state_dict(self) -> dict[str, Any]:
        """Return the thermostat's state, what the weights were taken for, and where fresh ones start."""
        return {**super().state_dict(), "uneven_share": self._share, "kappa": self._kappa}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the result of :meth:`state_dict`, or of an earlier version's ``Thermostat``.

        Raises:
            ValueError: if it is from a thermostat with another law, before anything has changed.
        """
        former = self._share, self._kappa
        kappa = float(state.get("kappa", DRIVEN_START))  # earlier versions: whatever the depth
        self._take_for(float(state.get("uneven_share", 0.0)), kappa)
        if state.get("law") != self._name:
            self._take_for(*former)
        super().load_state_dict(state)


def autotune(total_steps: int | None = None, preset: str = "default", *, shape: str | None = None) -> Chain:
    """Return the controllers that replace a tuned learning rate and a schedule.

    The chain consists of :class:`Thermostat` (the amplitude), :class:`Barostat` (weight decay) and
    :class:`Cooling` (the shape, after a warm-up over 10 % of the run). ``ThermoAdamW(
    model.named_parameters(), controller=autotune(T))`` needs no lr. Weight decay is lowered before it makes
    a layer collapse. The default preset also raises it, far above the groups' setting, when a network has
    memorised its data (the barostat's confinement). Decay 0 stays 0.

    The default preset starts new networks of more than eight matrices at a lower rate, in inverse proportion
    to the number of matrices, down to two fifths of the rate of shallow networks (:func:`fresh_kappa`).

    If it finds trained weights (a quarter or more of the matrices have rows of uneven size,
    :func:`thermoopt.controllers.units.trained_share`), it starts as ``"finetune"`` does and does not confine
    them; the log says so.

    Args:
        total_steps: length of the run in optimizer steps, at least 1. None for a run without a fixed end: the
            amplitude is held until ``chain.cool_now(steps)`` starts the quench.
        preset: ``"default"`` finds the rate from scratch. ``"finetune"`` starts from a small displacement
            budget, or from twenty times that if what is trained is new: adapters (a quarter or more of the
            trained matrices are 0 before the first step, as with LoRA) or a head alone (less than a
            hundredth of all elements, the others frozen). ``"respect_lr"`` stays within a factor of 4 of the
            optimizer's lr, with the same factor for all layers of a group, unless that lr moves a layer by
            more than a quarter of its size per step.
        shape: shape of the cooling (:data:`thermoopt.controllers.cooling.SHAPES`). None uses the preset's:
            ``"linear"`` for ``"respect_lr"``, ``"trapezoid"`` for the others, which start low and are still
            finding their rate when a linear shape already falls.

    Raises:
        TypeError, ValueError: for values out of range; the message names the argument.
    """
    total_steps = check_total_steps(total_steps)
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(map(repr, PRESETS))}, got {preset!r}")
    if preset == "finetune":
        thermostat: Thermostat = FineTuning(total_steps)
    elif preset == "respect_lr":
        bounds = (1 / RESPECT, RESPECT)
        thermostat = Thermostat("bounded_diffusion", total_steps=total_steps, layers=False, lr_scale=bounds)
    else:
        thermostat = FromStart(total_steps)
    if shape is None:
        shape = "linear" if preset == "respect_lr" else "trapezoid"
    cooling = Cooling(
        total_steps, "constant" if total_steps is None else shape, None if total_steps is None else WARMUP
    )
    barostat = Barostat(total_steps if preset == "default" else None)
    return Chain(thermostat, barostat, cooling)
