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
    """Multipliers for the coming step.

    Attributes:
        lr: a factor for every parameter group, or one a group;
            ``lr_eff = group["lr"] * lr * layer factor``.
        wd: likewise; ``wd_eff = group["weight_decay"] * wd``.
        layers: optional factors by layer name; layers not named keep theirs.

    Raises:
        ValueError: if a factor is negative or not finite.
    """

    lr: float | Sequence[float] = 1.0
    wd: float | Sequence[float] = 1.0
    layers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every factor."""
        for kind, values in (("lr", self.lr), ("wd", self.wd), ("layers", list(self.layers.values()))):
            for value in values if isinstance(values, Sequence) else [values]:
                if not (math.isfinite(value) and value >= 0):
                    raise ValueError(f"Scales: {kind} holds {value!r}; allowed are finite numbers >= 0")

    def spread(self, n_groups: int) -> tuple[list[float], list[float]]:
        """Return one lr and one wd factor for each of so many groups.

        Raises:
            ValueError: if the scales are for another number of groups.
        """
        out = []
        for kind, values in (("lr", self.lr), ("wd", self.wd)):
            factors = (
                [float(v) for v in values] if isinstance(values, Sequence) else [float(values)] * n_groups
            )
            if len(factors) != n_groups:
                raise ValueError(f"Scales: {kind} has {len(factors)} factors for {n_groups} parameter groups")
            out.append(factors)
        return out[0], out[1]


class Controller(ABC):
    """Turns readings into scales. Holds no tensors and knows no optimizer."""

    @abstractmethod
    def update(self, reading: Reading | None, step: int) -> Scales:
        """Return the scales of a step that is about to be taken.

        Args:
            reading: the newest reading if one was recorded since the last call, else None. Every recorded
                reading is handed over once, also across a checkpoint.
            step: number of the coming step, counted from 1 by the optimizer.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on, in plain floats, ints, strings, lists and dicts."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the run."""
