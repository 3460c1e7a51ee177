"""What a parameter group holds under ``thermo``: the one place that knows the keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from thermoopt.account import Ledger, as_leaf
from thermoopt.controllers import Controller, Scales
from thermoopt.tensors import root_mean_squares

__all__ = [
    "KEY",
    "GroupState",
    "apply_scales",
    "export_groups",
    "saved_controller",
    "set_layer_factors",
    "start_norms",
]

KEY = "thermo"
"""The key of the group. Beside what :class:`GroupState` names a checkpoint holds there what the ledger and
the control loop export, and the first group the controller's own state."""

_CONTROLLER = "controller"


class Exporter(Protocol):
    """A control loop: what it holds of a run, by groups, and the controller."""

    controller: Controller

    def export_group(self, layers: Sequence[int], params: Sequence[Tensor], total: int) -> dict[str, Any]:
        """Return what a group carries of it through a checkpoint."""


class GroupState:
    """What one group carries: scales, layer factors, and where it started.

    Args:
        group: a parameter group that has been :meth:`adopt`-ed.
    """

    __slots__ = ("held",)

    def __init__(self, group: Mapping[str, Any]) -> None:
        self.held: dict[str, Any] = group[KEY]

    @staticmethod
    def fresh(group: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a group holds before anything was controlled: every factor 1.

        ``start_lr`` and ``start_wd`` are the group's rates now; ``start_rms``, the layers' rms before the
        first controlled step, is -1 as long as it is not known.
        """
        n = len(group["params"])
        return {
            "lr_scale": 1.0,
            "wd_scale": 1.0,
            "layer_factors": torch.ones(n, dtype=torch.float64, device="cpu"),
            "start_lr": float(group["lr"]),
            "start_wd": float(group["weight_decay"]),
            "start_rms": torch.full((n,), -1.0, dtype=torch.float64, device="cpu"),
        }

    @classmethod
    def adopt(cls, group: dict[str, Any]) -> Mapping[str, Any]:
        """Give a group what it lacks of its live state; return all that was saved under the key."""
        saved = group.get(KEY, {})
        group[KEY] = {key: saved.get(key, value) for key, value in cls.fresh(group).items()}
        for key in ("layer_factors", "start_rms"):
            group[KEY][key] = torch.as_tensor(group[KEY][key], dtype=torch.float64, device="cpu")
        return saved

    @property
    def lr_scale(self) -> float:
        """Factor on the group's learning rate."""
        return self.held["lr_scale"]

    @property
    def wd_scale(self) -> float:
        """Factor on the group's weight decay."""
        return self.held["wd_scale"]

    @property
    def factors(self) -> Tensor:
        """Factors on the layers' learning rates, ``[n]``."""
        return self.held["layer_factors"]

    @property
    def start(self) -> tuple[float, float, list[float]]:
        """Learning rate, weight decay and the layers' rms at the start."""
        return self.held["start_lr"], self.held["start_wd"], self.held["start_rms"].tolist()

    def forget_scales(self, group: Mapping[str, Any]) -> None:
        """Let every factor be 1 again; the rates of the start stay those of construction."""
        fresh = self.fresh(group)
        for key in ("start_lr", "start_wd"):  # a dry step has lr 0
            del fresh[key]
        self.held.update(fresh)

    def snapshot(self) -> dict[str, Any]:
        """Return a copy."""
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in self.held.items()}


def saved_controller(saved: Sequence[Mapping[str, Any]]) -> Any:
    """Return the controller's state of a checkpoint, or None."""
    return next((group[_CONTROLLER] for group in reversed(saved) if _CONTROLLER in group), None)


def export_groups(
    groups: Sequence[Mapping[str, Any]], ledger: Ledger, loop: Exporter | None
) -> list[dict[str, Any]]:
    """Return what every group carries through a checkpoint: scales, averages, counters, the controller."""
    exported = ledger.export_groups()
    out = [{**GroupState(group).snapshot(), **more} for group, more in zip(groups, exported, strict=True)]
    if loop is not None:
        meter = ledger.meter
        for i, group in enumerate(groups):
            layers = np.flatnonzero(meter.group_of == i).tolist()
            out[i].update(loop.export_group(layers, group["params"], int(meter.numel.sum())))
        if out:
            out[0][_CONTROLLER] = as_leaf(loop.controller.state_dict())
    return out


def apply_scales(groups: Sequence[Mapping[str, Any]], scales: Scales) -> None:
    """Set the groups' factors."""
    lrs, wds = scales.spread(len(groups))
    for group, lr, wd in zip(groups, lrs, wds, strict=True):
        held = group[KEY]
        held["lr_scale"], held["wd_scale"] = lr, wd


def set_layer_factors(
    groups: Sequence[Mapping[str, Any]], names: Sequence[str], factors: Mapping[str, float]
) -> None:
    """Set factors of layers by name.

    Raises:
        KeyError, ValueError: as :meth:`thermoopt.ThermoAdamW.set_layer_factors`; nothing has changed then.
    """
    place = {name: i for i, name in enumerate(names)}
    for name, factor in factors.items():
        if name not in place:
            raise KeyError(f"layer factor for {name!r}, which belongs to no parameter of this optimizer")
        if not (math.isfinite(factor) and factor >= 0):
            raise ValueError(f"layer factor of {name!r} must be a finite number >= 0, got {factor!r}")
    homes = [(GroupState(group).factors, j) for group in groups for j in range(len(group["params"]))]
    for name, factor in factors.items():
        tensor, j = homes[place[name]]
        tensor[j] = factor


def start_norms(groups: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float], list[float]]:
    """Return every layer's rms, every group's lr and wd at the start; what is not known yet is as now."""
    fresh = [group for group in groups if (group[KEY]["start_rms"] < 0).any()]
    found = root_mean_squares([p for group in fresh for p in group["params"]])
    for group, values in zip(fresh, found.split([len(g["params"]) for g in fresh]), strict=True):
        group[KEY]["start_rms"] = values.clone()
    starts = [GroupState(group).start for group in groups]
    rms = [x for _, _, values in starts for x in values]
    return rms, [lr for lr, _, _ in starts], [wd for _, wd, _ in starts]
