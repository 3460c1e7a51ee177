"""What the barostat keeps of one parameter group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from thermoopt.controllers.lever import Bounds, Lever

__all__ = ["DecayGroup"]


@dataclass
class DecayGroup:
    """A parameter group with decayed matrices.

    Attributes:
        lever: the repair, a factor on the group's decay.
        first, acted: step of its first reading; number of its readings at the last action.
        wd: ``group["weight_decay"]`` when first attached.
        lr_max: largest learning rate so far.
        coupling: learning rate over its maximum, 1 until it falls.
        fastest: largest learning rate of a decayed matrix so far.
        confinement: factor >= 1 by which decay is raised while nothing drives the motion.
        confined: the same as the log last told it.
        unit, peak: the layers' unit, the highest rate so far; borne: share of the decay that they can bear.
        repaired: layers whose collapse caused a repair, until the factor is back at its maximum.
        reported: layers reported as shrunk by their gradient, until they no longer are.
        layers, reference2, horizon: the decayed matrices, their squared norms at the start, steps ahead.
    """

    lever: Lever
    wd: float
    first: int = 0
    acted: int = 0
    lr_max: float = 0.0
    coupling: float = 1.0
    fastest: float = 0.0
    confinement: float = 1.0
    confined: float = 1.0
    unit: float = 1.0
    borne: float = 1.0
    peak: float = 0.0
    repaired: list[str] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    reference2: list[float] = field(default_factory=list)
    horizon: float = 1.0

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is not known from the layers, in plain data."""
        return {
            "lever": self.lever.state_dict(),
            "wd": self.wd,
            "first": self.first,
            "acted": self.acted,
            "lr_max": self.lr_max,
            "coupling": self.coupling,
            "confinement": [self.fastest, self.confinement, self.confined],
            "borne": [self.unit, self.borne, self.peak],
            "repaired": list(self.repaired),
            "reported": list(self.reported),
        }

    @classmethod
    def of(cls, state: Mapping[str, Any], bounds: Bounds) -> DecayGroup:
        """Return the group that :meth:`state_dict` was of."""
        counts = int(state["first"]), int(state["acted"])
        rates = float(state["lr_max"]), float(state["coupling"])
        group = cls(Lever(bounds), float(state["wd"]), *counts, *rates)
        own = state.get("confinement", (0.0, 1.0, 1.0))  # not kept by earlier versions, nor what follows
        group.fastest, group.confinement, group.confined = map(float, own)
        group.unit, group.borne, group.peak = map(float, state.get("borne", (1.0, 1.0, 0.0)))
        group.repaired, group.reported = list(state["repaired"]), list(state["reported"])
        group.lever.load_state_dict(state["lever"])
        return group
