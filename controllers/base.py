"""What a controller is: plain readings in, plain multipliers out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from thermoopt.meter import Reading

__all__ = ["Controller", "Scales"]


@dataclass(frozen=True)
class Scales:
    """Multipliers that take effect at the next step.

    Attributes:
        lr: one factor a parameter group; ``lr_eff = group["lr"] * lr * layer factor``.
        wd: one factor a parameter group; ``wd_eff = group["weight_decay"] * wd``.
        layers: optional factors by layer name; layers not named keep theirs.

    Raises:
        ValueError: if a factor is negative or not finite.
    """

    lr: Sequence[float]
    wd: Sequence[float]
    layers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every factor."""
        for kind, values in (("lr", self.lr), ("wd", self.wd), ("layers", self.layers.values())):
            for value in values:
                if not (math.isfinite(value) and value >= 0):
                    raise ValueError(f"Scales: {kind} holds {value!r}; allowed are finite numbers >= 0")


class Controller(ABC):
    """Turns readings into scales. Holds no tensors and knows no optimizer."""

    @abstractmethod
    def update(self, reading: Reading, step: int) -> Scales:
        """Return the scales for the steps to come, given the newest reading."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on, in plain floats, ints, strings, lists and dicts."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the run."""
