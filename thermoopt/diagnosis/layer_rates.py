"""How weight decay enters an optimizer's step, and the present rates of every layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.optim import Optimizer

from thermoopt.account.reading import Reading
from thermoopt.adamw import RatesCache, ThermoAdamW, group_rates
from thermoopt.physics import AVERAGE, Term, sgd_shrink, swing_rest
from thermoopt.traits import (
    COUPLED,
    DECOUPLED,
    UNKNOWN,
    decay_entry,
    found_factor,
    group_decay,
    has_adam_moments,
)

__all__ = ["CoupledShare", "LayerRates"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LayerRates:
    """Present rates of the layers in the optimizer's groups, ``[n]`` in the order of a reading.

    Attributes:
        lr, wd: effective learning rate and weight decay.
        alpha: asymptotic factor per step by which decay alone shrinks the norm; NaN where unknown.
        gain: decay acts like a decoupled one of ``gain * wd``.
        momentum: momentum that the decay passes through, 0 where decoupled.
        coupled: whether decay is part of the update.
        swing: :func:`~thermoopt.physics.swing_rest` where decay makes the norm oscillate, else NaN.
        memory: steps for which the present source can be trusted: the memory of Adam's second moment,
            1 / (1 - beta2), else :data:`~thermoopt.physics.AVERAGE`.
        ndim: number of dimensions of the tensor.
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
        """Read the rates of the first ``n`` parameters of an optimizer."""
        rows: list[tuple[Any, ...]] = []
        adam = has_adam_moments(optimizer)
        for i, group in enumerate(optimizer.param_groups):
            lr, wd, factors = float(group.get("lr") or 0.0), group_decay(group), None
            found = found_factor(optimizer, group)
            lr *= 1.0 if found is None else float(found)
            if isinstance(optimizer, ThermoAdamW):
                rate = group_rates(i, group, RatesCache())
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
    r"""Fraction of a layer that decay inside the update removes per step, averaged like a reading.

    A reading's U is an average over steps, including steps before a change of decay, so the part of decay in
    it is tracked alongside: :math:`\kappa = (1-\alpha)/\eta`, which does not depend on the learning rate. In
    a momentum buffer it approaches a new value as :math:`1-\mu^t`, starting from 0 if the buffer was empty;
    the result is averaged over :data:`~thermoopt.physics.AVERAGE` steps.

    Args:
        warm: ``[n]`` whether the momentum buffers were filled at the start.
    """

    def __init__(self, warm: NDArray[np.bool_]) -> None:
        self._warm = warm
        self._buffer: Array | None = None
        self._mean, self._weight = np.zeros(len(warm)), 0.0

    def take(self, reading: Reading, rates: LayerRates, apart: int) -> Array:
        """Advance to a reading ``apart`` steps after the last; return the fraction decay removes, ``[n]``."""
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
    """Factor by which momentum strengthens decay; to first order where there is no decay."""
    if pull > 0:
        return (1 - alpha) / pull
    momentum = float(group["momentum"])
    if momentum >= 1:
        return math.inf
    kept = 1 - float(group["dampening"]) if momentum else 1.0
    return 1 + momentum * kept / (1 - momentum) if group["nesterov"] else kept / (1 - momentum)
