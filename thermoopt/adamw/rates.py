"""Effective rates: a group's lr and weight decay with its scales and layer factors applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.adamw.state import GroupState
from thermoopt.tensors import same_objects, widest

__all__ = [
    "Rates",
    "RatesCache",
    "Rows",
    "group_rates",
    "kernel_rates",
    "layer_rates",
    "scaled_groups",
    "spread",
]


@dataclass(frozen=True)
class Rates:
    """Effective rates of one group in the coming step.

    Attributes:
        lr: ``group["lr"] * lr_scale``; a Tensor stays one.
        wd: ``group["weight_decay"] * wd_scale``.
        factors: one factor on ``lr`` per parameter, or None if all are 1.
        neutral: whether these are exactly the group's own rates.
        base, scale: the group's own lr and its ``lr_scale``, whose product ``lr`` is.
    """

    lr: float | Tensor
    wd: float
    factors: list[float] | None
    neutral: bool
    base: float | Tensor = 1.0
    scale: float = 1.0

    @property
    def maybe_zero(self) -> bool:
        """Whether lr is 0 as far as the host can tell (a device tensor is not waited for)."""
        if isinstance(self.lr, Tensor):
            return self.lr.device.type == "cpu" and float(self.lr.detach()) == 0.0
        return self.lr == 0.0

    def layer_lr(self, j: int) -> float | Tensor:
        """Effective learning rate of the group's j-th parameter."""
        return self.lr if self.factors is None else self.lr * self.factors[j]


class RatesCache:
    """Rates of groups and layer factors as floats, formed again only when what they depend on has changed."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, int, list[float] | None]] = {}
        self._rates: dict[int, tuple[tuple[Any, ...], Rates]] = {}

    def floats(self, group: int, factors: Tensor) -> list[float] | None:
        """Return the factors of a group, or None if all are 1."""
        known = self._known.get(group)
        if known is None or known[0] is not factors or known[1] != factors._version:
            values = factors.tolist()
            known = (factors, factors._version, None if all(v == 1.0 for v in values) else values)
            self._known[group] = known
        return known[2]

    def rates(self, group: int, given: tuple[Any, ...]) -> Rates:
        """Return the rates formed of these numbers: the same object as long as they are the same objects."""
        known = self._rates.get(group)
        if known is None or not same_objects(given, known[0]):
            known = self._rates[group] = given, _rates(*given)
        return known[1]


def group_rates(index: int, group: dict[str, Any], cache: RatesCache) -> Rates:
    """Read the effective rates of one group."""
    thermo = GroupState(group)
    factors = cache.floats(index, thermo.factors)
    given = group["lr"], group["weight_decay"], thermo.lr_scale, thermo.wd_scale, factors
    # a tensor may change and stay the same object
    is_fixed = type(given[0]) is float and type(given[1]) is float
    return cache.rates(index, given) if is_fixed else _rates(*given)


def _rates(
    lr: float | Tensor, wd: float, lr_scale: float, wd_scale: float, factors: list[float] | None
) -> Rates:
    return Rates(
        lr=lr if lr_scale == 1.0 else lr * lr_scale,
        wd=wd if wd_scale == 1.0 else wd * wd_scale,
        factors=factors,
        neutral=lr_scale == 1.0 and wd_scale == 1.0 and factors is None,
        base=lr,
        scale=lr_scale,
    )


def spread(values: Sequence[Any], group: NDArray[np.int64]) -> Any:
    """Return one number if all groups agree, else one per tensor, ``[n]``.

    Args:
        values: one per group.
        group: the group of each tensor, ``[n]``.
    """
    first = values[0]
    return first if all(v is first or v == first for v in values) else np.array(values)[group]


@dataclass
class Rows:
    """Places of the tensors that a kernel steps together, ``[n]`` each.

    Attributes:
        group: index of each tensor's group, ascending.
        position: its position in the group.
    """

    group: NDArray[np.int64]
    position: NDArray[np.int64]
    _known: tuple[list[Any], NDArray[np.float64]] | None = None

    def factors(self, rates: Sequence[Rates]) -> NDArray[np.float64] | None:
        """Return the layers' factors, ``[n]``, or None if all are 1; cached as long as they do not change."""
        own = [rate.factors for rate in rates]
        if all(f is None for f in own):
            return None
        if self._known is None or not same_objects(own, self._known[0]):
            pairs = zip(self.group.tolist(), self.position.tolist(), strict=True)
            self._known = own, np.array([1.0 if (f := own[i]) is None else f[j] for i, j in pairs])
        return self._known[1]


def kernel_rates(rates: Sequence[Rates], rows: Rows) -> dict[str, Any]:
    """Return effective rates as a kernel's step takes them: one number or ``[n]`` each.

    A learning rate on a device stays there and is given together with the ``factor`` on it, so that a
    captured graph follows both.

    Args:
        rates: of every group.
        rows: the kernel's tensors.
    """
    group, factors = rows.group, rows.factors(rates)
    out: dict[str, Any] = {"weight_decay": spread([rate.wd for rate in rates], group)}
    devices = [base.device for rate in rates if is_on_device(base := rate.base)]
    name, values = ("factor", "scale") if devices else ("lr", "lr")
    own = spread([float(getattr(rate, values)) for rate in rates], group)
    out[name] = own if factors is None else own * factors
    if len(rates) == 1 and devices:
        out["lr"] = torch.as_tensor(rates[0].base).reshape(())  # torch takes one of shape [1] too
    elif devices:
        counts = np.bincount(group, minlength=len(rates)).tolist()
        out["lr"] = torch.cat(
            [
                rate.base.reshape(1).expand(n).to(widest(devices[0]))
                if is_on_device(rate.base)
                else torch.full((n,), float(rate.base), dtype=widest(devices[0]), device=devices[0])
                for rate, n in zip(rates, counts, strict=True)
            ]
        )
    return out


def layer_rates(
    groups: Sequence[Mapping[str, Any]], rates: Sequence[Rates], rows: Rows
) -> tuple[NDArray[np.float64], Tensor | None]:
    """Return every layer's effective learning rate, negative under ``maximize``.

    Args:
        groups, rates: of all groups.
        rows: every layer in order.

    Returns:
        Rates ``[n]`` and None; or, if the learning rate is on a device, factors ``[n]`` and that learning
        rate, 0-d or ``[n]``.
    """
    given = kernel_rates(rates, rows)
    base = given["lr"] if isinstance(given["lr"], Tensor) else None
    lrs = given["lr" if base is None else "factor"]
    if not isinstance(lrs, np.ndarray):
        lrs = np.full(len(rows.group), lrs, np.float64)
    ascent = [bool(group["maximize"]) for group in groups]
    return (lrs if not any(ascent) else lrs * np.where(np.array(ascent)[rows.group], -1.0, 1.0)), base


def is_on_device(x: Any) -> TypeGuard[Tensor]:
    """Whether a rate is a tensor that the host would have to wait for."""
    return isinstance(x, Tensor) and x.device.type != "cpu"


def scaled_groups(groups: Sequence[dict[str, Any]], rates: Sequence[Rates]) -> list[dict[str, Any]]:
    """Return copies of the groups with their effective rates, one copy per distinct rate within a group.

    The copies share their parameters with the originals, which are not modified.
    """
    out = []
    for group, rate in zip(groups, rates, strict=True):
        if rate.factors is None:
            out.append({**group, "lr": rate.lr, "weight_decay": rate.wd})
            continue
        by_factor: dict[float, list[Tensor]] = {}
        for p, factor in zip(group["params"], rate.factors, strict=True):
            by_factor.setdefault(factor, []).append(p)
        out.extend(
            {**group, "params": params, "lr": rate.lr * factor, "weight_decay": rate.wd}
            for factor, params in by_factor.items()
        )
    return out
