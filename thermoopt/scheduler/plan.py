"""The plain schedule of one parameter group's learning rate, bit for bit that of torch's schedulers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thermoopt.account import as_leaf
from thermoopt.controllers import SHAPES, Start, cooling_factor

__all__ = [
    "ANYTIME",
    "GroupSchedule",
    "SchedulePlan",
    "copied",
    "geometric_mean",
    "scaled_lrs",
    "untracked",
    "write_lrs",
]

ANYTIME = ("constant", "inverse_time")
"""Shapes that do not depend on the length of the run."""


@dataclass(frozen=True)
class SchedulePlan:
    """The shape over the run: the arguments of :class:`~thermoopt.scheduler.ThermoScheduler`, checked.

    Raises:
        TypeError, ValueError: for values out of range; the message names the argument.
    """

    total_steps: int | None
    warmup_steps: int
    shape: str
    eta_min: float
    rate: float | None

    def __post_init__(self) -> None:
        names = [*SHAPES, "inverse_time"]
        total = self.total_steps
        if self.shape not in names:
            raise ValueError(f"shape must be one of {', '.join(map(repr, names))}, got {self.shape!r}")
        if total is None and self.shape not in ANYTIME:
            raise ValueError(
                f"total_steps must be an integer >= 1 with shape {self.shape!r}, which ends with the "
                f"run, got None; it may be None with {' or '.join(map(repr, ANYTIME))}"
            )
        for name, value, least in (("total_steps", total, 1), ("warmup_steps", self.warmup_steps, 0)):
            if name == "total_steps" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(f"{name} must be an integer >= {least}, got {value!r}")
            object.__setattr__(self, name, int(value))  # of numpy's, too: checkpoints hold plain numbers
            if value < least:
                raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
        if total is not None and self.warmup_steps > total:
            raise ValueError(f"warmup_steps must be at most total_steps = {total}, got {self.warmup_steps!r}")
        if not (math.isfinite(self.eta_min) and self.eta_min >= 0):
            raise ValueError(f"eta_min must be a number >= 0, got {self.eta_min!r}")
        if (self.shape == "inverse_time") != (self.rate is not None) or (
            self.rate is not None and not self.rate > 0
        ):
            raise ValueError(
                "rate must be a number > 0 with shape 'inverse_time' and None with any other, got "
                f"{self.rate!r}"
            )

    @property
    def length(self) -> int | None:
        """Step at which the lr is cooled, None for a shape without an end."""
        return None if self.shape in ANYTIME else self.total_steps

    def floor(self, base: float | Tensor) -> float:
        """Return the final value of the shape as a fraction of a group's lr."""
        value = float(base)
        return 1.0 if value <= self.eta_min else self.eta_min / value

    def next_lr(self, previous: float | Tensor, base: float | Tensor, floor: float, n: int) -> float | Tensor:
        """Return the lr after n steps from that after n - 1, with torch's operations in torch's order."""
        w, total = self.warmup_steps, self.total_steps
        if n < w:  # LinearLR from 1/w to 1 in w - 1 steps
            s = 1 / w
            return base * s if n == 0 else previous * (1.0 + (1.0 - s) / ((w - 1) * s + (n - 1) * (1.0 - s)))
        t = n - w
        if self.shape == "constant" or floor == 1.0:
            return base * 1.0
        if self.shape == "linear":  # LinearLR from 1 to the floor
            assert total is not None
            if t == 0:
                return base * 1.0
            return previous * (1.0 + (floor - 1.0) / (total - w + (t - 1) * (floor - 1.0)))
        if self.shape == "cosine":  # CosineAnnealingLR, which SequentialLR begins by its closed form
            assert total is not None
            if t == 0:
                return base * 1.0 if w == 0 else self.eta_min + (base - self.eta_min)
            new, old = (1 + math.cos(math.pi * k / (total - w)) for k in (t, t - 1))
            return new / old * (previous - self.eta_min) + self.eta_min
        factor = cooling_factor(
            n + 1,
            total_steps=total,
            shape=self.shape,
            warmup_steps=w,
            floor=floor,
            rate=self.rate or 0.0,
        )
        return base * factor  # LambdaLR


@dataclass
class GroupSchedule:
    """The state of one parameter group's schedule, and its scales.

    Attributes:
        base, wd: base values of lr and weight decay.
        floor: final value of the shape as a fraction of ``base``.
        lr: the plain schedule's lr at time ``epoch`` (optimizer steps taken; -1 before the first).
        lr_scale, wd_scale: a controller's factors.
        owns_wd: whether a controller has ever changed the decay.
    """

    base: float | Tensor
    wd: float
    floor: float
    lr: float | Tensor = 0.0
    epoch: int = -1
    lr_scale: float = 1.0
    wd_scale: float = 1.0
    owns_wd: bool = False

    def advance(self, plan: SchedulePlan, epoch: int) -> None:
        """Advance to a time step by step: each lr follows from the previous one."""
        last = epoch if plan.total_steps is None else min(epoch, plan.total_steps)
        for n in range(self.epoch + 1, last + 1):
            self.lr = plan.next_lr(self.lr, self.base, self.floor, n)
        self.epoch = max(self.epoch, epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return everything in floats, ints and bools."""
        return {**vars(self), "base": float(self.base), "lr": float(self.lr)}

    def load_state_dict(self, state: Mapping[str, Any], plan: SchedulePlan, same_plan: bool) -> None:
        """Load the result of :meth:`state_dict`; lr and time only if they belong to the same plan."""
        self.base, self.wd = _like(state["base"], self.base), float(state["wd"])
        self.floor = plan.floor(self.base)
        self.lr_scale, self.wd_scale = float(state["lr_scale"]), float(state["wd_scale"])
        self.owns_wd = bool(state["owns_wd"])
        if same_plan:
            self.lr, self.epoch = _like(state["lr"], self.base), int(state["epoch"])


def copied(lr: float | Tensor) -> float | Tensor:
    """Return a copy of an lr."""
    return lr.detach().clone() if isinstance(lr, Tensor) else lr


def plain(state: Any) -> Any:
    """Copy nested data with lists in place of tensors."""
    if isinstance(state, Mapping):
        return {key: plain(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [plain(value) for value in state]
    return state.tolist() if isinstance(state, Tensor) else state


def untracked(state: Mapping[str, Any]) -> str:
    """Return an observer's state as one JSON string, without the samples that it tracks."""
    return as_leaf(plain({key: value for key, value in state.items() if key != "tracked"}))


def scaled_lrs(
    groups: Sequence[GroupSchedule],
    start: Start | None,
    layers: Mapping[str, float],
    idle: Collection[str],
    optimizer: Optimizer,
) -> list[float | Tensor]:
    """Return each group's lr times its scale and one factor: the mean of its layers' (geometric, by size).

    Frozen layers have no part in it, since nobody moves their factors with the others', and neither have
    those without any gradient so far, whose factors wait for one.

    Args:
        groups: the groups' schedules.
        start: the groups' layers, if a controller knows them.
        layers: factors by layer name, 1 where there is none.
        idle: names of layers that have never had a gradient.
        optimizer: its parameters say which layers take a gradient now.
    """
    factors = [1.0] * len(groups)
    if layers and start is not None:
        members: list[list[tuple[int, float]]] = [[] for _ in groups]
        trains = [p.requires_grad for group in optimizer.param_groups for p in group["params"]]
        known = len(trains) == len(start.names)
        for i, (name, group, numel) in enumerate(zip(start.names, start.group_of, start.numel, strict=True)):
            if name not in idle and (not known or trains[i]):
                members[group].append((numel, layers.get(name, 1.0)))
        factors = [geometric_mean(pairs) for pairs in members]
    return [own.lr * (own.lr_scale * factor) for own, factor in zip(groups, factors, strict=True)]


def geometric_mean(pairs: list[tuple[int, float]]) -> float:
    """Return the weighted geometric mean of factors, exactly the factor if all are equal."""
    factors = {factor for _, factor in pairs}
    if len(factors) == 1:
        return factors.pop()
    total = sum(weight for weight, _ in pairs)
    if not factors or 0.0 in factors or total == 0:
        return 0.0 if 0.0 in factors else 1.0
    return math.exp(sum(weight * math.log(factor) for weight, factor in pairs) / total)


def _like(value: float, lr: float | Tensor) -> float | Tensor:
    return torch.full_like(lr, value) if isinstance(lr, Tensor) else float(value)


def write_lrs(
    groups: Iterable[dict[str, Any]], lrs: Iterable[float | Tensor], held: Iterable[GroupSchedule]
) -> None:
    """Write each group's lr into it, in place if it is a tensor.

    Groups that got their lr from the optimizer's ``lr=torch.tensor(...)`` share that one tensor; all but the
    first are given one of their own.

    Args:
        groups: the optimizer's.
        lrs: what to write.
        held: the groups' schedules.

    Warns:
        UserWarning: if a group whose base is 0 was given another lr from outside, as layers are unfrozen.
    """
    written: set[int] = set()
    for index, (group, lr, own) in enumerate(zip(groups, lrs, held, strict=True)):
        if not isinstance(group["lr"], Tensor):
            if group["lr"] > 0 and float(own.base) == 0:
                warnings.warn(
                    f"lr of group {group.get('name', f'group{index}')!r} was set to {group['lr']:g} but is 0 "
                    "again: a ThermoScheduler keeps a group at lr 0 if it had that when it was added. To "
                    "train frozen layers later, give their group an lr above 0 from the start",
                    UserWarning,
                    stacklevel=5,
                )
            group["lr"] = float(lr)
            continue
        if id(group["lr"]) in written:
            group["lr"] = copied(group["lr"])
        group["lr"].copy_(torch.as_tensor(lr, device=group["lr"].device))
        written.add(id(group["lr"]))
