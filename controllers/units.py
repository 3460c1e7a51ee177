r"""The layers' own units: the scale that a rate D multiplies, and the factors that make it so.

Initialisers mean a *gain*, :math:`g_l = \mathrm{rms}_l\sqrt{\mathrm{fan\_in}_l}`: :math:`1/\sqrt3` for every
linear and convolution layer of torch's defaults, :math:`\sqrt2` for He's, smaller exactly where a network
scales residual outputs down. The rms alone also holds the width, which says nothing of how far a layer is to
go.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thermoopt.account.reading import Reading
from thermoopt.controllers.base import Start

__all__ = ["EQUILIBRIUM_RMS", "FALLBACK", "GroupRates", "Units", "layer_units"]

FALLBACK = 0.02
"""Unit of a model that is zero everywhere: the initial scale of GPT-2's matrices."""

STEPS_AN_OCTAVE = 8
"""Layer factors are rounded to powers of 2**(1/8), 9 % apart: layers of like shape then share one factor,
and a torch step that takes one group a factor takes few. No loss of this project's measurements resolves 5 %
of a rate."""

NO_SCALE = 8.0
"""A gain so many times above or below the typical one is no scale that an initialiser meant: look-up tables
of unit normals (gain sqrt(width), 8 at width 64), matrices that start near 0, layer scales of 1e-5. Residual
outputs of GPT-2 stay within (1/sqrt(2 L), a factor of 8 at 32 layers)."""

EQUILIBRIUM_RMS = math.sqrt((1 - 0.9) / (1 + 0.9))
"""Rms of Adam's update in pure noise at beta1 = 0.9: what a foreign optimizer's update is compared with."""

SPAN = 2.0
"""Furthest that a layer's unit may lie from the typical one. Tuned AdamW has one rate for all layers;
positions of std 0.02 beside torch's default layers (a quarter of their gain) would learn too slowly at their
own."""

LARGEST_GAIN = math.sqrt(2)
"""Gain of He's initialisation, the largest in common use: a network that starts larger moves in its units."""


@dataclass(frozen=True)
class Units:
    """Units of layers and of groups.

    Attributes:
        layer: s_l of each layer, > 0.
        group: of each group the geometric mean over its layers.
        factor: of each layer s_l over its group's unit, rounded.
    """

    layer: NDArray[np.float64]
    group: tuple[float, ...]
    factor: dict[str, float]


def layer_units(start: Start, fixed: Mapping[str, float] | None = None) -> Units:
    r"""Return s_l: the typical rms, times how a layer's gain compares with the typical gain.

    .. math::
        s_l = \bar s\,\min(1, \sqrt2/\bar g)\cdot\mathrm{clip}(g_l/\bar g,\ 1/2,\ 2)

    with :math:`\bar g` the median gain of the matrices that do not start at 0 and :math:`\bar s` the mean
    rms of those whose gain lies within a factor of :data:`NO_SCALE` of it. Vectors, matrices outside of
    that (look-up tables, near-zero starts) and zero matrices (LoRA's B) take :math:`\bar s` itself: biases
    and gains start at 0 or 1, which says nothing of how far they are to go. Without any matrix that is not 0
    the geometric mean of all layers that are not 0 counts; without any, :data:`FALLBACK`.

    Args:
        start: the parameters before the first step.
        fixed: units by layer name that were told before: layers that join in mid-run do not change them.

    Returns:
        The :class:`Units`.
    """
    rms = np.asarray(start.rms, dtype=np.float64)
    gain = rms * np.sqrt(np.maximum(1.0, np.asarray(start.fan_in, dtype=np.float64)))
    known = (np.asarray(start.ndim) >= 2) & (rms > 0)
    ratio = np.ones_like(rms)
    if known.any():
        middle = float(np.median(gain[known]))
        ratio[known] = gain[known] / middle
        known &= (ratio >= 1 / NO_SCALE) & (ratio <= NO_SCALE)
        # the median of an even number of gains may lie far from all of them
        mean = float(rms[known].mean()) if known.any() else _geometric_mean(rms[rms > 0])
        typical = mean * min(1.0, LARGEST_GAIN / middle)
    else:
        typical = _geometric_mean(rms[rms > 0]) or FALLBACK
    fresh = (typical * np.where(known, np.clip(ratio, 1 / SPAN, SPAN), 1.0)).tolist()
    units = np.array([(fixed or {}).get(name, s) for name, s in zip(start.names, fresh, strict=True)])
    groups = np.asarray(start.group_of)
    group = tuple(_geometric_mean(units[groups == g]) or typical for g in range(len(start.group_names)))
    exponents = np.log2(units / np.asarray(group)[groups]) if len(units) else units
    factors = 2.0 ** (np.round(exponents * STEPS_AN_OCTAVE) / STEPS_AN_OCTAVE)
    return Units(units, group, dict(zip(start.names, factors.tolist(), strict=True)))


def _geometric_mean(values: NDArray[np.float64] | Sequence[float]) -> float:
    return math.exp(float(np.log(values).mean())) if len(values) else 0.0


class GroupRates:
    """Between rates in a law's metric and the groups' lr_scale.

    Args:
        metric: ``"rms"`` or ``"lr"``.
        lr_scale: bounds of every group's lr_scale.

    Attributes:
        sizes: of groups whose optimizer has no Adam moments, the measured size of the update over Adam's.
        peaks: by how much an outside schedule has raised each group's lr above the start's, at most.
    """

    def __init__(self, metric: str, lr_scale: tuple[float, float]) -> None:
        self._metric, self._lr_scale = metric, lr_scale
        self._start: Start | None = None
        self.sizes: dict[str, float] = {}
        self.peaks: dict[str, float] = {}

    def attach(self, start: Start, units: Units) -> None:
        """Take up groups and units.

        Raises:
            ValueError: if a group's lr is 0 and the law yields an absolute rate.
        """
        if self._metric == "rms":
            for name, lr in zip(start.group_names, start.lr, strict=True):
                if not lr > 0:
                    raise ValueError(
                        f"lr of group {name!r} must be > 0 where a thermostat is attached, since its "
                        f"absolute rate is expressed as a factor on it, got {lr!r}"
                    )
        self._start, self._units = start, units

    def size_up(self, reading: Reading) -> None:
        """Compare updates of groups without Adam's moments with Adam's: a law means steps of unit size."""
        assert self._start is not None
        for group, beta2 in enumerate(self._start.beta2):
            if beta2 == 0 and group < len(reading.groups):
                q = reading.groups[group]
                size = q.update_norm / math.sqrt(max(1, q.numel)) / EQUILIBRIUM_RMS
                if math.isfinite(size) and size > 0:
                    self.sizes[self._start.group_names[group]] = size

    def see_lr(self, lr: Sequence[float]) -> None:
        """Keep by how much an outside schedule has raised each group's lr above the start's, at most."""
        if self._start is None or self._metric != "rms":
            return
        for name, now, base in zip(self._start.group_names, lr, self._start.lr, strict=True):
            factor = now / base
            if math.isfinite(factor) and factor > self.peaks.get(name, 1.0):
                if name not in self.peaks:
                    warnings.warn(
                        f"lr of group {name!r} rose from {base:g} to {now:g} beside a controller that sets "
                        "absolute rates: an outside schedule multiplies with it, relative to its own peak; "
                        "leave the schedule out, or the controller's cooling (shape='constant')",
                        UserWarning,
                        stacklevel=2,
                    )
                self.peaks[name] = factor

    def state(self) -> tuple[float, ...]:
        """Return all that scales depend on beside a rate."""
        return (*self.sizes.values(), *self.peaks.values())

    def scale(self, group: int, rate: float) -> float:
        """Return the lr_scale of a group at a rate; 1 where the size of an update is not known yet."""
        assert self._start is not None
        lo, hi = self._lr_scale
        if self._metric == "lr":
            return min(max(rate, lo), hi)
        scale = rate / self._one(group)
        return min(max(scale, lo), hi) if math.isfinite(scale) else 1.0

    def reach(self, base: str) -> tuple[float, float]:
        """Rates that ``lr_scale`` lets through: a target beyond them would only wind up.

        Args:
            base: a group's name, or ``"all"``.
        """
        assert self._start is not None
        lo, hi = self._lr_scale
        if self._metric == "lr":
            return lo, hi
        names = enumerate(self._start.group_names)
        ones = [self._one(group) for group, name in names if base in ("all", name)]
        return (lo * min(ones), hi * max(ones)) if all(map(math.isfinite, ones)) else (0.0, math.inf)

    def _one(self, group: int) -> float:
        """Rate of a group at lr_scale 1, NaN where the size of an update is not known yet."""
        assert self._start is not None
        name = self._start.group_names[group]
        size = 1.0 if self._start.beta2[group] > 0 else self.sizes.get(name, math.nan)
        return self._start.lr[group] * size * self.peaks.get(name, 1.0) / self._units.group[group]
