"""How weight decay enters an optimizer's step, and every layer's rates as they are now."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import Optimizer

from thermoopt.account.reading import Reading
from thermoopt.adamw import FactorCache, ThermoAdamW, group_rates
from thermoopt.physics import AVERAGE, Term, sgd_shrink, swing_rest

__all__ = ["COUPLED", "DECOUPLED", "UNKNOWN", "CoupledShare", "LayerRates", "decay_entry", "group_decay"]

Array = NDArray[np.float64]

DECOUPLED, COUPLED, UNKNOWN = "decoupled", "coupled", "unknown"
"""Ways in which decay enters: beside the update; in the gradient as torch's SGD has it, where its effect is
known; in some other way, where it cannot be told from the rest."""


def group_decay(group: Mapping[str, Any]) -> float:
    """Weight decay that a group says, 0 where it says none."""
    return float(group.get("weight_decay") or 0.0)


def decay_entry(optimizer: Optimizer, group: Mapping[str, Any]) -> str:
    """Tell how a group's decay enters the step.

    :data:`DECOUPLED` for AdamW and for groups with ``decoupled_weight_decay``, :data:`COUPLED` for SGD with
    torch's own step, else :data:`UNKNOWN` (Adam's coupled decay runs through its second moment).
    """
    if isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False):
        return DECOUPLED
    step = inspect.unwrap(type(optimizer).step)
    by_torch = isinstance(optimizer, torch.optim.SGD) and step is inspect.unwrap(torch.optim.SGD.step)
    return COUPLED if by_torch else UNKNOWN


@dataclass(frozen=True)
class LayerRates:
    """Rates of layers as the optimizer's groups hold them at this moment, ``[n]`` in the order of a reading.

    Attributes:
        lr, wd: effective learning rate and weight decay.
        alpha: factor by which decay alone shrinks the norm in a step, in the end; NaN where not known.
        gain: decay is as strong as a decoupled one of ``gain * wd``.
        momentum: that the decay goes through, 0 where decoupled.
        coupled: whether decay is part of the update.
        swing: :func:`~thermoopt.physics.swing_rest` where that makes the norm swing, else NaN.
        memory: steps for which the present source can be trusted: of Adam's second moment,
            1 / (1 - beta2), else :data:`~thermoopt.physics.AVERAGE`.
        ndim: dimensions of the tensor.
    """

    lr: Array
    wd: Array
    alpha: Array
    gain: Array
    momentum: Array
    coupled: NDArray[np.bool_]
    swing: Array
    memory: Array
    ndim: NDArray[np.int64]

    @classmethod
    def of(cls, optimizer: Optimizer, n: int) -> LayerRates:
        """Read them off the first so many parameters of an optimizer."""
        rows: list[tuple[Any, ...]] = []
        adam = isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW))
        for i, group in enumerate(optimizer.param_groups):
            lr, wd, factors = float(group.get("lr") or 0.0), group_decay(group), None
            if isinstance(optimizer, ThermoAdamW):
                rate = group_rates(i, group, FactorCache())
                lr, wd, factors = float(rate.lr), rate.wd, rate.factors
            beta2 = float(group["betas"][1]) if adam else 0.0
            memory = 1 / (1 - beta2) if beta2 > 0 else float(AVERAGE)
            entry = decay_entry(optimizer, group)
            momentum = float(group["momentum"]) if entry == COUPLED else 0.0
            by_lr: dict[float, tuple[Any, ...]] = {}
            for j, p in enumerate(group["params"]):
                own = lr if factors is None else lr * factors[j]
                if own not in by_lr:
                    gain, swing = 1.0, math.nan
                    alpha = _alpha(entry, group, own, wd)
                    if entry == COUPLED:
                        gain = _gain(group, alpha, own * wd)
                        swing = swing_rest(own, wd, momentum, float(group["dampening"]))
                    coupled = entry == COUPLED and wd > 0
                    by_lr[own] = own, wd, alpha, gain, momentum, coupled, swing, memory
                rows.append((*by_lr[own], p.ndim))
        return cls(*(np.array(column) for column in zip(*rows[:n], strict=True)))


class CoupledShare:
    r"""Share of a layer that decay inside of the update takes in a step, averaged as readings are.

    A reading's U is an average over steps, also of those from before a change of decay, so what decay has in
    it is followed alongside: :math:`\kappa = (1-\alpha)/\eta`, which does not go with the learning rate. In a
    momentum buffer it goes over to its new value as :math:`1-\mu^t`, from 0 where the buffer was empty at the
    start; this is averaged over :data:`~thermoopt.physics.AVERAGE` steps.

    Args:
        warm: ``[n]`` whether the buffers were filled at the start.
    """

    def __init__(self, warm: NDArray[np.bool_]) -> None:
        self._warm = warm
        self._buffer: Array | None = None
        self._mean, self._weight = np.zeros(len(warm)), 0.0

    def take(self, reading: Reading, rates: LayerRates, apart: int) -> Array:
        """Go on to a reading that came so many steps after the last; return the share that decay takes."""
        if not rates.coupled.any() and not self._mean.any():
            return np.zeros(len(self._warm))
        with np.errstate(divide="ignore", invalid="ignore"):
            kappa = np.where(rates.coupled & (rates.lr > 0), (1 - rates.alpha) / rates.lr, 0.0)
            before = np.where(self._warm, kappa, 0.0) if self._buffer is None else self._buffer
            self._buffer = kappa + (before - kappa) * rates.momentum**apart
            q = (1 - 1 / AVERAGE) ** apart
            kept, self._weight = q * self._weight, q * self._weight + 1 - q
            self._mean = (kept * self._mean + (1 - q) * self._buffer) / self._weight
            return self._mean * reading.terms[Term.LR_NUMEL] / reading.terms[Term.NUMEL]


def _alpha(entry: str, group: Mapping[str, Any], lr: float, wd: float) -> float:
    if wd == 0 or entry == DECOUPLED:
        return 1 - lr * wd
    if entry == UNKNOWN:
        return math.nan
    return sgd_shrink(lr, wd, float(group["momentum"]), float(group["dampening"]), group["nesterov"])


def _gain(group: Mapping[str, Any], alpha: float, pull: float) -> float:
    """How much stronger decay is for going through the momentum; to first order where there is none."""
    if pull > 0:
        return (1 - alpha) / pull
    momentum = float(group["momentum"])
    if momentum >= 1:
        return math.inf
    kept = 1 - float(group["dampening"]) if momentum else 1.0
    return 1 + momentum * kept / (1 - momentum) if group["nesterov"] else kept / (1 - momentum)
