r"""The reverse gear: what lowers a rate, as pure functions, and the little memory that it takes.

Three kinds of evidence, none of which falls silently with the loss, as r and the gradient's norm do where a
network interpolates its data:

* *noise*: the energy of fresh gradients over that of those which v remembers, :math:`E = C/d`, leaps while
  motion stays incoherent (:math:`r_c = r/E` near 1 or below). Batches became smaller, labels noisier, or the
  rate itself has thrown the weights to where gradients are large.
* *loss*, where it is reported: half of what a run had gained is lost again, by more than it fluctuates.
* *turning*: a layer moves by more than a stated share of its size a step, whoever set its rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SHARE", "Gear", "Shift", "largest_share", "leap"]

LEAP = 3.0
"""Growth of E from one window to the next that no healthy run shows. Measured by this project on convolution
and recurrent nets, MLPs, transformers and LoRA at 0.03 to 10 times the best rate: at most 2.6 within a tenth
of the run. A batch an eighth as large is a factor of up to 8."""

WINDOW = 0.05
"""Share of the run within which a leap must come about."""

INCOHERENT = 1.5
"""r_c up to which motion counts as incoherent: pure noise has 1, overshooting less; where data of another
kind come in, gradients grow too, but agree (r_c of 2 and more), and the rate is needed."""

LEAST = 0.5
"""Smallest factor of one action. Measured by this project: data of another kind leap like noise at first
(r_c 0.2 to 1 for some dozen steps), and there every halving costs."""

LOST = 0.5
"""Share of the gain in loss that must be lost again."""

LOST_READINGS = 3
"""Readings in a row that must say so: one batch may be bad."""

ABOVE_NOISE = 3.0
"""Mean fluctuations of the loss that it must have risen by above its best. The lowest of a noisy loss lies
two to three below its mean by chance: on a plateau, all that had been gained seems lost again."""

FLUCTUATION = 20
"""Readings over which fluctuations are averaged: a tenth of a run's, many beside a leap of the loss."""

LOWERED = 0.5
"""Factor for a loss that is lost: as a search would halve."""

SHARE = 0.25
"""Largest share of max(rms, unit) that a layer's elements may move by in a step, root mean square. Origin:
at 10 times the best rate, healthy networks of this project's measurements reach 0.1 to 0.25; a quarter a
step leaves nothing of a layer's old value after four."""


@dataclass(frozen=True)
class Shift:
    """What the gear asks for: a factor on the rate and on the set-point, its evidence, the reason."""

    factor: float
    evidence: Mapping[str, tuple[float, float]]
    reason: str


def leap(energies: Sequence[tuple[int, float]], now: float, step: int, window: float) -> float:
    """Return E now over the median of E between one and three windows ago; NaN where there is none.

    Args:
        energies: earlier (step, E).
        now: E of the newest reading.
        step: of the newest reading.
        window: in steps.
    """
    before = [e for t, e in energies if 3 * window >= step - t >= window and e > 0]
    return now / median(before) if before and now > 0 else math.nan


def largest_share(
    step2: NDArray[np.float64],
    norm2: NDArray[np.float64],
    moving: NDArray[np.float64],
    numel: NDArray[np.float64],
    units: NDArray[np.float64],
) -> tuple[float, int]:
    r"""Return the largest share that a layer moves by in a step, and which layer.

    .. math:: \frac{\eta_l\|U_l\|/\sqrt{d_l}}{\max(\|\theta_l\|/\sqrt{n_l},\ s_l)}

    Args:
        step2: :math:`\eta^2\|U\|^2` of each layer, [th**2].
        norm2: :math:`\|\theta\|^2`, [th**2].
        moving: elements that have ever had a gradient.
        numel: elements.
        units: s_l, [th].
    """
    moved = np.sqrt(np.maximum(step2, 0.0) / np.maximum(moving, 1.0))
    share = moved / np.maximum(np.sqrt(np.maximum(norm2, 0.0) / np.maximum(numel, 1.0)), units)
    share = np.where(np.isfinite(share), share, 0.0)
    if not share.size:
        return 0.0, -1
    i = int(share.argmax())
    return float(share[i]), i


@dataclass
class Gear:
    """Memory of one rate's reverse gear.

    Attributes:
        cut: product of the factors so far, at most 1: the set-point is lowered with the rate, or it would be
            back at once.
        energies: (step, E) of the readings of the last three windows.
        acted: step of the last action, 0 for none.
        first, best, lost: first loss, lowest smoothed loss, readings in a row that say it is lost.
        smooth, noise: running means of the loss, and of its distance from that.
    """

    cut: float = 1.0
    energies: list[tuple[int, float]] = field(default_factory=list)
    acted: int = 0
    first: float = math.nan
    best: float = math.nan
    smooth: float = math.nan
    noise: float = 0.0
    lost: int = 0

    def look(
        self, step: int, t: int, total_steps: int, energy: float, coherence: float, loss: float
    ) -> Shift | None:
        """Take in a reading and say whether the rate must come down, or may come back.

        Args:
            step: of the optimizer.
            t: steps since the rate's own start.
            total_steps: length of the run.
            energy, coherence: E and r_c.
            loss: NaN where none is reported.
        """
        window = max(2.0, WINDOW * total_steps)
        shift = self._noise(step, t, window, energy, coherence) or self._loss(step, t, window, loss)
        if math.isfinite(energy):
            self.energies.append((step, energy))
            self.energies = [pair for pair in self.energies if step - pair[0] <= 3 * window]
        if shift is not None:
            self.cut = min(1.0, self.cut * shift.factor)
            self.acted = step
            self.energies.clear()  # what comes is measured against what is
        return shift

    def _noise(self, step: int, t: int, window: float, energy: float, coherence: float) -> Shift | None:
        if t < 3 * window or not (math.isfinite(energy) and math.isfinite(coherence)):
            return None
        jump = leap(self.energies, energy, step, window)
        evidence = {
            "energy_ratio": (energy, math.nan),
            "energy_leap": (jump, math.nan),
            "coherence": (coherence, math.nan),
        }
        if jump >= LEAP and energy > 1 and coherence <= INCOHERENT:
            factor = max(LEAST, 1 / math.sqrt(jump))
            reason = f"gradient noise leapt by a factor of {jump:.3g}: rate lowered by its square root"
            return Shift(factor, evidence, reason)
        if jump <= 1 / LEAP and self.cut < 1:
            factor = min(1 / self.cut, 1 / math.sqrt(jump))
            return Shift(factor, evidence, "gradient noise fell back: rate restored accordingly")
        return None

    def _loss(self, step: int, t: int, window: float, loss: float) -> Shift | None:
        if not math.isfinite(loss):
            return None
        if math.isnan(self.smooth):
            self.smooth = loss
        self.noise += (abs(loss - self.smooth) - self.noise) / FLUCTUATION
        self.smooth += (loss - self.smooth) / 3
        if math.isnan(self.first):
            self.first = self.best = loss
        self.best = min(self.best, self.smooth)
        rise = max(LOST * (self.first - self.best), ABOVE_NOISE * self.noise)
        gone = self.first > self.best and self.smooth > self.best + rise
        self.lost = self.lost + 1 if gone else 0
        rested = self.acted == 0 or step - self.acted >= 2 * window
        if self.lost < LOST_READINGS or t < 3 * window or not rested:
            return None
        evidence = {
            "loss": (self.smooth, math.nan),
            "loss_best": (self.best, math.nan),
            "loss_first": (self.first, math.nan),
        }
        self.lost = 0
        reason = "half of what the loss had gained is lost again: rate lowered by half"
        return Shift(LOWERED, evidence, reason)

    def state_dict(self) -> dict[str, Any]:
        """Return everything in floats, ints and lists; what is not known is None."""
        plain = {k: v for k, v in vars(self).items() if k != "energies"}
        plain = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in plain.items()}
        return {**plain, "energies": [list(pair) for pair in self.energies]}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Gear:
        """Return the gear that :meth:`state_dict` was of."""
        own: dict[str, Any] = {k: math.nan if v is None else v for k, v in state.items()}
        return cls(**{**own, "energies": [(int(t), float(e)) for t, e in state["energies"]]})
