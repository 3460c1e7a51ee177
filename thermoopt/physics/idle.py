r"""Idle motion: steps that no force drives any more, and the weight decay that confines what they move.

Adam's steps have a size of their own. While data drive the motion, that makes it fast. Once a network has
memorised its data the force falls to nothing, but the steps do not; if they still agree with each other, they
go on enlarging what has been learned: outputs grow, and generalisation suffers. AdamW's weights are an
average of its updates over :math:`1/(\eta\lambda)` steps; a decay that limits this average to a part of the
run lets them forget what nothing renews. Plain data and pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "AGREEING",
    "LEAST",
    "SHORT",
    "SPENT",
    "Force",
    "bearable",
    "confined_memory",
    "confining_decay",
    "idleness",
]

LEAST = 60
"""Steps over which confined weights remember their updates in short runs: six times the memory of the
momentum which builds weights (theory, section 4)."""

SHORT = 300
"""Longest run of so short a memory, in steps; beyond, it grows as the root of the length. Measured by this
project: at 300 to 600 steps half as long a memory lowers tables by 5 %, and raises an autoencoder and a
sequence labeller by 14 to 20 %. At 1500 to 2500 steps 26 networks end at 0.96 of what a memory of a fifth of
the run gives (a residual perceptron of 62 matrices at 1.3, a residual convolution net at 0.7), tables and a
graph at 0.4 to 0.95."""

SPENT = 0.25
"""Share of the mean force from which on it counts as spent. Measured by this project from a fifth of the run
on: at most 0.2 on networks that know their data by heart, 0.15 to 0.4 on recurrent, capsule and implicit
networks, which still learn. With 0.5 some of those end 12 to 20 % higher, with 0.25 1 to 4 %."""

AGREEING = (1.0, 1.5)
"""r_c up to which motion counts as incoherent, and from which on as agreeing with itself. Pure noise has 1;
about a minimum, or where only noise of the labels is left, steps overshoot (0.2 to 1), and decay would only
move what has been found. Measured by this project: 1.2 to 16 on networks that know their data by heart."""


@dataclass
class Force:
    r"""An account of what steps have released: the force that is left, over its mean so far.

    .. math:: f = \frac{\sigma/\eta}{\sum\sigma/\sum\eta}

    It is 1 at a constant force, and near 0 once the data no longer push the weights along, as in a network
    that has memorised its data, while Adam's steps keep their size. No unit.

    Attributes:
        released: free energy that the steps have released to first order, [L].
        rates: sum of their learning rates.
    """

    released: float = 0.0
    rates: float = 0.0

    def book(self, sigma: float, lr: float, steps: int) -> float:
        """Book some steps and return the force now over its mean so far, NaN if unknown.

        Args:
            sigma: entropy production, [L per step].
            lr: mean effective learning rate.
            steps: number of steps to which they apply.
        """
        if not (math.isfinite(sigma) and lr > 0):
            return math.nan
        self.released += max(0.0, sigma) * steps
        self.rates += lr * steps
        return sigma / lr / (self.released / self.rates) if self.released > 0 else math.nan

    def state(self) -> list[float]:
        """Return both sums."""
        return [self.released, self.rates]

    @classmethod
    def of(cls, state: Sequence[float]) -> Force:
        """Return the force that :meth:`state` was of."""
        released, rates = state
        return cls(float(released), float(rates))


def idleness(force: float, coherence: float) -> float:
    r"""Return how far the motion goes on without being driven, from 0 to 1.

    .. math:: w = \Bigl(1 - \frac{f}{f_0}\Bigr)_{[0,1]}\Bigl(\frac{r_c - 1}{1.5 - 1}\Bigr)_{[0,1]}

    0 where either is not known.

    Args:
        force: f of :class:`Force`; f0 is :data:`SPENT`, 0.25.
        coherence: r_c.

    References:
        derived for this project.
    """
    if not (math.isfinite(force) and math.isfinite(coherence)):
        return 0.0
    low, high = AGREEING
    spent = min(1.0, max(0.0, 1 - force / SPENT))
    return spent * min(1.0, max(0.0, (coherence - low) / (high - low)))


def confined_memory(total_steps: int) -> float:
    r"""Return the steps over which confined weights remember: :math:`M = 60\,\max(1, \sqrt{T/300})`.

    Args:
        total_steps: length T of the run.

    Returns:
        Steps, at least 60.

    References:
        measured by this project (:data:`SHORT`).
    """
    return LEAST * max(1.0, math.sqrt(total_steps / SHORT))


def confining_decay(lr: float, total_steps: int) -> float:
    r"""Return the decay at which weights remember :func:`confined_memory` steps at a learning rate.

    .. math:: \lambda = \frac{1}{\eta M}

    Args:
        lr: the highest learning rate of a matrix so far, > 0.
        total_steps: length of the run.

    References:
        AdamW as an average of its updates: Wang and Aitchison, arXiv 2405.13698.
    """
    return 1 / (lr * confined_memory(total_steps))


def bearable(decay: float, lr: float, unit: float) -> float:
    r"""Return the share of a decay that weights can bear.

    .. math:: \min\Bigl(1,\ \frac1s,\ \frac{1}{\eta\lambda}\Bigr)

    Adam moves an element by about :math:`\eta` a step at most and decay by :math:`\eta\lambda\theta`, so none
    stays above :math:`1/\lambda`: with torch's decay of 0.01 a constant of 5000 ends at 100, whatever its
    gradient. With :math:`1/s` decay takes of weights of size s the share that it takes of others of size 1.
    Beyond :math:`\eta\lambda = 1` it would change their sign.

    Args:
        decay: of the group, lambda, 1/[lr].
        lr: the highest learning rate of a layer so far, eta.
        unit: s, the layers' unit, [th].
    """
    return min(1.0, 1 / max(unit, 1.0), 1 / max(lr * decay, 1.0)) if decay > 0 else 1.0
