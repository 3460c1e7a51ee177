"""The force along the motion: free energy that a unit of learning rate releases, against its mean so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Force"]


@dataclass
class Force:
    r"""Books what steps have released; tells how much force is left of the mean over the way so far.

    .. math:: f = \frac{\sigma/\eta}{\sum\sigma/\sum\eta}

    1 at a constant force; near 0 where the data no longer push the weights along, as in a network that knows
    its data by heart, while Adam's steps keep their size. No unit.

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
            steps: how many steps they hold for.
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
