"""A bounded, slew-limited, logged scale, which every acting controller uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thermoopt.controllers.base import Action

__all__ = ["Bounds", "Lever"]


@dataclass(frozen=True)
class Bounds:
    """Limits on a controller's changes of a scale.

    Attributes:
        lo, hi: the scale stays in [lo, hi]; 0 <= lo <= hi.
        slew_up, slew_down: largest factor per step upwards and downwards, > 1.
        min_readings: readings before the first action, >= 0.
        hold_off: steps between two actions, >= 0.

    Raises:
        ValueError: for values out of range; the message names the argument.
    """

    lo: float = 0.0
    hi: float = math.inf
    slew_up: float = 1.1
    slew_down: float = 1.1
    min_readings: int = 1
    hold_off: int = 0

    def __post_init__(self) -> None:
        """Check every value."""
        if not 0 <= self.lo <= self.hi:
            raise ValueError(f"lo and hi must satisfy 0 <= lo <= hi, got {self.lo!r} and {self.hi!r}")
        for name in ("slew_up", "slew_down"):
            if not getattr(self, name) > 1:
                raise ValueError(f"{name} must be a factor > 1, got {getattr(self, name)!r}")
        for name in ("min_readings", "hold_off"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (value >= 0 and value % 1 == 0):
                raise ValueError(f"{name} must be an integer >= 0, got {value!r}")


class Lever:
    """A scale on its way to a target.

    An action sets the target, within bounds; every step then moves the value towards it by at most the slew
    limit. The target never leaves the bounds, so there is no wind-up while the value is at one of them.

    Args:
        bounds: the limits.
        value: the initial value, clipped to the bounds.
    """

    def __init__(self, bounds: Bounds, value: float = 1.0) -> None:
        self.bounds = bounds
        self.value = self.target = min(max(value, bounds.lo), bounds.hi)
        self.acted = 0
        self.readings = 0

    @property
    def down(self) -> float:
        """The value, or the target if that is lower: a value on its way down counts as down."""
        return min(self.value, self.target)

    def ready(self, step: int) -> bool:
        """Whether it may act: there have been enough readings, and the hold-off is over."""
        held = self.acted > 0 and step - self.acted < self.bounds.hold_off
        return self.readings >= self.bounds.min_readings and not held

    def aim(
        self,
        target: float,
        step: int,
        *,
        controller: str,
        group: str,
        kind: str,
        evidence: Mapping[str, tuple[float, float]],
        reason: str,
        tolerance: float = 0.0,
    ) -> Action | None:
        """Set the target and return the action, or None if it may not act or too little would change.

        Args:
            target: wanted scale; a non-finite value requests nothing.
            step: number of the next step.
            controller, group, kind, evidence, reason: recorded in the :class:`Action`.
            tolerance: relative change of the target below which nothing is done.
        """
        if not math.isfinite(target) or not self.ready(step):
            return None
        target = min(max(target, self.bounds.lo), self.bounds.hi)
        if abs(target - self.target) <= tolerance * self.target:
            return None
        action = Action(step, controller, group, kind, self.value, target, dict(evidence), reason)
        self.target, self.acted = target, step
        return action

    def move(self) -> float:
        """Move one step towards the target and return the value."""
        if self.target > self.value:
            # from 0 no factor leads away
            limit = self.value * self.bounds.slew_up if self.value > 0 else self.target
            self.value = min(self.target, limit)
        elif self.target < self.value:
            self.value = max(self.target, self.value / self.bounds.slew_down)
        return self.value

    def state_dict(self) -> dict[str, Any]:
        """Return value, target, step of the last action, readings seen."""
        return {"value": self.value, "target": self.target, "acted": self.acted, "readings": self.readings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the result of :meth:`state_dict`."""
        self.value, self.target = float(state["value"]), float(state["target"])
        self.acted, self.readings = int(state["acted"]), int(state["readings"])
