"""A float64 account of a step from copies of weights and gradients, and the error of a reading against it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from thermoopt import Observer
from thermoopt.benchmarks.others.problem import Run

__all__ = ["MEASURED", "Account"]

MEASURED = ("sigma", "grad_norm", "param_norm", "update_norm", "angular_step", "distance")
"""Quantities compared, layer by layer: for any optimizer they are defined by the weights before and after its
step and the gradient it was given."""


@dataclass
class Account:
    """Keeps weights and gradients of the present step, and the worst error of each quantity.

    sigma, which may be 0, is compared relative to ``||g|| ||theta' - theta||``, all others to themselves.

    Attributes:
        errors: worst relative error seen, by quantity.
        unavailable: quantities that a reading gave as NaN although the account has them.
        unread: steps that gave no reading of their own.
    """

    errors: dict[str, float] = field(default_factory=dict)
    unavailable: set[str] = field(default_factory=set)
    unread: int = 0
    _found: dict[Tensor, float] = field(default_factory=dict)
    _before: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _start: dict[str, Tensor] = field(default_factory=dict)

    def before(self, run: Run, step: int) -> None:
        """Copy weights and gradients."""
        held = {p for group in run.optimizer.param_groups for p in group["params"]}
        if not self._start:
            self._start = {n: p.detach().double().clone() for n, p in run.model.named_parameters()}
        self._found = {p: _found(group) for group in run.optimizer.param_groups for p in group["params"]}
        self._before = {
            name: (
                p.detach().double().clone(),
                p.grad.detach().double().clone(),
            )
            for name, p in run.model.named_parameters()
            if p.grad is not None and p in held
        }

    def after(self, run: Run, observer: Observer) -> None:
        """Compare the step's reading with the account."""
        reading = observer.reading
        if reading is None or reading.step != observer.steps:
            self.unread += 1
            return
        params = dict(run.model.named_parameters())
        lrs = {p: group.get("lr") for group in run.optimizer.param_groups for p in group["params"]}
        for name, (theta, g) in self._before.items():
            layer = reading.layers[name]
            p = params[name]
            lr = 1.0 if (own_lr := lrs[p]) is None else float(own_lr)  # as the step left it
            lr *= self._found[p]
            moved = p.detach().double() - theta * (1 - lr * layer.wd_eff)
            own = _own(theta, g, moved, lr)
            own["distance"] = float((theta - self._start[name]).square().sum())
            force = own["grad_norm"] * math.sqrt(float(moved.square().sum()))
            for quantity in MEASURED:
                self._compare(quantity, getattr(layer, quantity), own[quantity], force)

    def _compare(self, quantity: str, read: float, own: float, force: float) -> None:
        if math.isnan(own) or own == 0.0:
            return
        if math.isnan(read):
            self.unavailable.add(quantity)
            return
        scale = force if quantity == "sigma" else abs(own)
        error = abs(read - own) / max(scale, 1e-300)
        self.errors[quantity] = max(self.errors.get(quantity, 0.0), error)


def _found(group: dict[str, Any]) -> float:
    """Factor on the group's lr in the optimizer's next step: d of D-Adaptation and Prodigy."""
    return float(group.get("d", 1.0)) / float(group.get("g0_norm") or 1.0)


def _own(theta: Tensor, g: Tensor, moved: Tensor, lr: float) -> dict[str, Any]:
    norm = {name: math.sqrt(float(x.square().sum())) for name, x in (("g", g), ("t", theta), ("d", moved))}
    return {
        "sigma": -float((g * moved).sum()),
        "grad_norm": norm["g"],
        "param_norm": norm["t"],
        "update_norm": norm["d"] / lr if lr else math.nan,
        "angular_step": norm["d"] / norm["t"] if norm["t"] else math.nan,
    }


def same(a: Any, b: Any) -> bool:
    """Whether two nested states hold the same bits; NaN equals NaN."""
    if isinstance(a, Tensor):
        return (
            isinstance(b, Tensor)
            and a.shape == b.shape
            and torch.equal(torch.nan_to_num(a.detach()), torch.nan_to_num(b.detach()))
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return not isinstance(a, (int, float, bool, str, type(None))) or bool(a == b)
