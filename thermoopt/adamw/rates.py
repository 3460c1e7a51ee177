"""Effective rates: what a group's lr and weight decay are once its scales and layer factors are in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["FactorCache", "Rates", "fresh_thermo", "group_rates", "scaled_groups"]


@dataclass(frozen=True)
class Rates:
    """Effective rates of one group in the coming step.

    Attributes:
        lr: ``group["lr"] * lr_scale``; a Tensor stays one.
        wd: ``group["weight_decay"] * wd_scale``.
        factors: one factor on ``lr`` a parameter, or None where all are 1.
        neutral: whether all of it is just what the group says.
    """

    lr: float | Tensor
    wd: float
    factors: list[float] | None
    neutral: bool

    @property
    def maybe_zero(self) -> bool:
        """Whether lr is 0 as far as the host can tell (a device tensor is not waited for)."""
        if isinstance(self.lr, Tensor):
            return self.lr.device.type == "cpu" and float(self.lr) == 0.0
        return self.lr == 0.0

    def layer_lr(self, j: int) -> float | Tensor:
        """Effective learning rate of the group's j-th parameter."""
        return self.lr if self.factors is None else self.lr * self.factors[j]


class FactorCache:
    """Layer factors as floats, converted again only when their tensor was written to."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, int, list[float] | None]] = {}

    def floats(self, group: int, factors: Tensor) -> list[float] | None:
        """Return the factors of a group, or None where all are 1."""
        known = self._known.get(group)
        if known is None or known[0] is not factors or known[1] != factors._version:
            values = factors.tolist()
            known = (factors, factors._version, None if all(v == 1.0 for v in values) else values)
            self._known[group] = known
        return known[2]


def fresh_thermo(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a group holds under ``thermo`` before anything was controlled: every factor 1.

    ``start_lr`` and ``start_wd`` are the group's rates now; ``start_rms``, the layers' rms before the first
    controlled step, is -1 as long as it is not known.
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


def group_rates(index: int, group: dict[str, Any], cache: FactorCache) -> Rates:
    """Read the effective rates of one group."""
    thermo = group["thermo"]
    lr_scale, wd_scale = thermo["lr_scale"], thermo["wd_scale"]
    factors = cache.floats(index, thermo["layer_factors"])
    lr, wd = group["lr"], group["weight_decay"]
    return Rates(
        lr=lr if lr_scale == 1.0 else lr * lr_scale,
        wd=wd if wd_scale == 1.0 else wd * wd_scale,
        factors=factors,
        neutral=lr_scale == 1.0 and wd_scale == 1.0 and factors is None,
    )


def scaled_groups(groups: Sequence[dict[str, Any]], rates: Sequence[Rates]) -> list[dict[str, Any]]:
    """Copies of the groups that hold effective rates, one for each rate within a group.

    The copies share parameters with the originals; nothing of the originals is written.
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
