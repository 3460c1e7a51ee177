r"""The layers' own units: the scale that a rate D multiplies, and the factors that make it so.

Initialisers set a *gain*, :math:`g_l = \mathrm{rms}_l\sqrt{\mathrm{fan\_in}_l}`: :math:`1/\sqrt3` for every
linear and convolution layer with torch's defaults, :math:`\sqrt2` with He's, and smaller exactly where a
network scales down residual outputs. The rms itself also depends on the width, which says nothing about how
far a layer has to move.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from thermoopt.account.reading import Reading
from thermoopt.controllers.base import Start
from thermoopt.controllers.cohorts import turning
from thermoopt.controllers.gear import SHARE
from thermoopt.controllers.setpoints import Evidence
from thermoopt.physics import Term

__all__ = [
    "EQUILIBRIUM_RMS",
    "FALLBACK",
    "TRAINED",
    "UNEVEN",
    "GroupRates",
    "Units",
    "first_seen",
    "layer_units",
    "trained_share",
]

FALLBACK = 0.02
"""Unit of a model that is zero everywhere: the initial scale of GPT-2's matrices."""

STEPS_AN_OCTAVE = 8
"""Layer factors are rounded to powers of 2**(1/8), 9 % apart, so that layers of similar shape share a factor
and a torch step with one group per factor needs few groups. No loss in this project's measurements resolves 5
% of a rate."""

NO_SCALE = 8.0
"""A gain this many times above or below the typical one is not a scale intended by an initialiser: look-up
tables of unit normals (gain sqrt(width), 8 at width 64), matrices that start near 0, layer scales of 1e-5.
Residual outputs of GPT-2 stay within it (1/sqrt(2 L), a factor of 8 at 32 layers)."""

EQUILIBRIUM_RMS = math.sqrt((1 - 0.9) / (1 + 0.9))
"""Rms of Adam's update in pure noise at beta1 = 0.9, with which another optimizer's update is compared."""

SPAN = 2.0
"""Largest factor between a layer's unit and the typical one. Tuned AdamW has one rate for all layers;
positions of std 0.02 beside torch's default layers (a quarter of their gain) would learn too slowly at their
own unit."""

LARGEST_GAIN = math.sqrt(2)
"""Gain of He's initialisation, the largest in common use: a network that starts larger moves in its units."""


@dataclass(frozen=True)
class Units:
    """Units of layers and of groups.

    Attributes:
        layer: s_l of each layer, > 0.
        group: geometric mean over the layers of each group.
        factor: s_l of each layer over its group's unit, rounded.
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
    the geometric mean of all layers that are not 0 counts; without any, :data:`FALLBACK`. Frozen layers are
    left out of medians and means: the units of the others are as if the groups did not hold them.

    Args:
        start: the parameters before the first step.
        fixed: earlier units by layer name, which layers that join during the run do not change.

    Returns:
        The :class:`Units`.
    """
    rms = np.asarray(start.rms, dtype=np.float64)
    gain = rms * np.sqrt(np.maximum(1.0, np.asarray(start.fan_in, dtype=np.float64)))
    moving = np.asarray(start.trainable, dtype=bool) if any(start.trainable) else np.ones(len(rms), bool)
    known = (np.asarray(start.ndim) >= 2) & (rms > 0)
    ratio = np.ones_like(rms)
    if (known & moving).any():
        middle = float(np.median(gain[known & moving]))
        ratio[known] = gain[known] / middle
        known &= (ratio >= 1 / NO_SCALE) & (ratio <= NO_SCALE)
        # the median of an even number of gains may lie far from all of them
        usual = known & moving
        mean = float(rms[usual].mean()) if usual.any() else _geometric_mean(rms[(rms > 0) & moving])
        typical = mean * min(1.0, LARGEST_GAIN / middle)
    else:
        typical = _geometric_mean(rms[(rms > 0) & moving]) or FALLBACK
    fresh = (typical * np.where(known, np.clip(ratio, 1 / SPAN, SPAN), 1.0)).tolist()
    units = np.array([(fixed or {}).get(name, s) for name, s in zip(start.names, fresh, strict=True)])
    groups = np.asarray(start.group_of)
    group = tuple(
        _geometric_mean(units[(groups == g) & moving]) or _geometric_mean(units[groups == g]) or typical
        for g in range(len(start.group_names))
    )
    exponents = np.log2(units / np.asarray(group)[groups]) if len(units) else units
    factors = 2.0 ** (np.round(exponents * STEPS_AN_OCTAVE) / STEPS_AN_OCTAVE)
    return Units(units, group, dict(zip(start.names, factors.tolist(), strict=True)))


def first_seen(start: Start, known: Collection[str], frozen: Collection[str]) -> tuple[Start, set[str]]:
    """Let every layer count as frozen or not as it did when it was first seen, so that units do not change.

    Args:
        start: the parameters.
        known: names of the layers seen before.
        frozen: those of them that were frozen then.

    Returns:
        The start with ``trainable`` of then, and the names of all layers that count as frozen.
    """
    now = {name for name, moves in zip(start.names, start.trainable, strict=False) if not moves}
    held = {name for name in start.names if name in (frozen if name in known else now)}
    return replace(start, trainable=tuple(name not in held for name in start.names)), held


def _geometric_mean(values: NDArray[np.float64] | Sequence[float]) -> float:
    return math.exp(float(np.log(values).mean())) if len(values) else 0.0


class GroupRates:
    """Converts between rates in a law's metric and the groups' lr_scale.

    Args:
        metric: ``"rms"`` or ``"lr"``.
        lr_scale: bounds of every group's lr_scale.
        bounded: whether no layer may move by more than the largest share of its size a step.

    Attributes:
        sizes: measured size of the update over Adam's, for groups whose optimizer has no Adam moments.
        peaks: largest factor by which an outside schedule has raised each group's lr above its initial value.
        least: lowest lr_scale of groups whose layers would move too far at the one given.
        read: whether a reading was held to that share.
    """

    def __init__(self, metric: str, lr_scale: tuple[float, float], bounded: bool) -> None:
        self._metric, self._lr_scale, self._bounded = metric, lr_scale, bounded
        self._start: Start | None = None
        self._base: list[float] = []
        self._still: set[str] = set()  # groups that began frozen, at lr 0
        self.sizes: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        self.least: dict[str, float] = {}
        self.read = False
        self._capped: dict[int, tuple[float, float]] = {}

    def attach(self, start: Start, units: Units, layers: bool) -> None:
        """Receive groups and units, and whether the layers of a group have separate rates.

        Raises:
            ValueError: if the lr of a group is 0 and the law yields an absolute rate, unless the group has no
                layers or all are frozen.

        Warns:
            UserWarning: once, if groups differ in lr and an absolute rate without bounds overrides that.
        """
        trained = {g for g, takes in zip(start.group_of, start.takes_gradient, strict=True) if takes}
        given = [(name, start.lr[group]) for group, name in enumerate(start.group_names) if group in trained]
        if self._metric == "rms":
            for name, lr in given:
                if not lr > 0 and name not in self._still:
                    raise ValueError(
                        f"lr of group {name!r} must be > 0 with a thermostat, which expresses an absolute "
                        f"rate as a factor on lr, got {lr!r}. To freeze the group, set requires_grad=False "
                        "on its parameters"
                    )
            differ = len({lr for _, lr in given}) > 1
            if self._start is None and self._lr_scale == (0.0, math.inf) and differ:
                rates = ", ".join(f"{name} {lr:g}" for name, lr in given)
                warnings.warn(
                    f"groups differ in lr ({rates}), but this controller sets absolute rates, one for each "
                    "layer, and overrides that. autotune(total_steps, 'respect_lr') keeps groups apart",
                    UserWarning,
                    stacklevel=2,
                )
        self._still |= {start.group_names[i] for i, lr in enumerate(start.lr) if lr == 0}
        self._start, self._units, self._base = start, units, list(start.lr)
        sizes = np.maximum(np.asarray(start.rms), units.layer)
        factor = np.array([units.factor[name] if layers else 1.0 for name in start.names])
        numel, room = np.asarray(start.numel, dtype=np.float64), SHARE * sizes / factor
        of = [np.asarray(start.group_of) == g for g in range(len(start.group_names))]
        self._most = [float(room[own].min(initial=math.inf)) for own in of]
        self._mean_factor = [float((numel * factor)[own].sum() / max(1.0, numel[own].sum())) for own in of]

    def size_up(self, reading: Reading) -> None:
        """Measure the updates of groups without Adam's moments relative to Adam's, which laws assume."""
        assert self._start is not None
        for group, beta2 in enumerate(self._start.beta2):
            if beta2 == 0 and group < len(reading.groups):
                q = reading.groups[group]
                size = q.update_norm / math.sqrt(max(1, q.numel)) / EQUILIBRIUM_RMS
                if math.isfinite(size) and size > 0:
                    self.sizes[self._start.group_names[group]] = size

    def see_lr(self, lr: Sequence[float]) -> str | None:
        """Record the largest factor by which an outside schedule has raised each group's lr.

        Returns:
            The warning to give if a group's lr rose above its initial value for the first time, or None.
        """
        if self._start is None or self._metric != "rms":
            return None
        said = None
        self._base = [base or now for base, now in zip(self._base, lr, strict=True)]  # 0 where it was frozen
        for name, now, base in zip(self._start.group_names, lr, self._base, strict=True):
            factor = now / base if base else 1.0
            if math.isfinite(factor) and factor > self.peaks.get(name, 1.0):
                if name not in self.peaks:
                    said = said or (
                        f"lr of group {name!r} rose from {base:g} to {now:g} while a controller sets "
                        "absolute rates: an outside schedule multiplies with them, relative to its own peak. "
                        "Remove the schedule, or the controller's cooling (shape='constant')"
                    )
                self.peaks[name] = factor
        return said

    def state(self) -> tuple[float, ...]:
        """Return everything besides a rate that scales depend on."""
        return (*self.sizes.values(), *self.peaks.values(), *self.least.values(), self.read)

    def scale(self, group: int, rate: float) -> float:
        """Return a group's lr_scale at a rate; 1 while the size of its update is unknown."""
        assert self._start is not None
        lo, hi = self._lr_scale
        if self._metric == "lr":
            return min(max(rate, lo), hi)
        scale = rate / self._one(group)
        lo = self.least.get(self._start.group_names[group], lo)
        return self._first(group, min(max(scale, lo), hi)) if math.isfinite(scale) else 1.0

    def held_up(self, rate: float) -> list[int]:
        """Return the indices of the groups that the lowest lr_scale holds above a rate."""
        assert self._start is not None
        least = [self.least.get(name, self._lr_scale[0]) for name in self._start.group_names]
        return [group for group, lo in enumerate(least) if 0 < rate / self._one(group) < lo]

    def hold(self, reading: Reading) -> Iterator[tuple[str, float, float, Evidence, str]]:
        """Let the lowest lr_scale give way where it makes a layer move by more than the largest share.

        Args:
            reading: the newest.

        Yields:
            Group, lr_scale before and now, evidence, reason: of a bound that begins to bind.
        """
        assert self._start is not None
        if not self._bounded:
            return
        for group, (old, new) in self._capped.items():
            reason = (
                f"bound: at most {SHARE:g} of a layer's size per step; until the first reading Adam's update "
                "is taken to be of unit size"
            )
            yield self._start.group_names[group], old, new, {"turning_bound": (SHARE, 0.0)}, reason
        self.read, self._capped = True, {}
        for group, name in enumerate(self._start.group_names):
            own = reading.seen & (reading.group_of == group)
            share, layer = turning(reading, own, self._units.layer[: len(own)][own])
            old, full = self.least.get(name, self._lr_scale[0]), self._full(group, reading.terms[:, own])
            there = share * old / full if full > 0 else 0.0
            if there > SHARE:  # at the lowest lr_scale it would move so far
                self.least[name] = old * SHARE / there
                reason = f"bound: {layer} would move by {there:.3g} of its size per step; lr_scale gives way"
                evidence = {"turning": (there, math.nan), "turning_bound": (SHARE, 0.0)}
                yield name, old, self.least[name], evidence, reason

    def _full(self, group: int, terms: NDArray[np.float64]) -> float:
        """Return the lr_scale that a group's layers had: lower than ours while others warm up or cool."""
        assert self._start is not None
        numel = terms[Term.NUMEL].sum()
        lr = terms[Term.LR_NUMEL].sum() / numel if numel > 0 else math.nan
        one = self._base[group] * self._mean_factor[group]
        return float(lr / one) if one > 0 else math.nan

    def _first(self, group: int, scale: float) -> float:
        """Return a scale within what is safe before anything was measured, for updates of Adam's size."""
        assert self._start is not None
        if self.read or not (self._bounded and self._start.beta2[group] > 0 and self._base[group] > 0):
            return scale
        most = self._most[group] / (self._base[group] * self.peaks.get(self._start.group_names[group], 1.0))
        if scale > most:
            self._capped[group] = (scale, most)
        return min(scale, most)

    def reach(self, base: str) -> tuple[float, float]:
        """Return the bounds that ``lr_scale`` puts on rates: a target beyond them would only wind up.

        Args:
            base: a group's name, or ``"all"``.
        """
        assert self._start is not None
        lo, hi = self._lr_scale
        if self._metric == "lr":
            return lo, hi
        names = [
            (group, name)
            for group, name in enumerate(self._start.group_names)
            if base in ("all", name) and self._base[group] > 0
        ]
        ones = [self._one(group) for group, _ in names]
        if not (ones and all(map(math.isfinite, ones))):
            return 0.0, math.inf
        least = [self.least.get(name, lo) * one for (_, name), one in zip(names, ones, strict=True)]
        return min(least), hi * max(ones)

    def _one(self, group: int) -> float:
        """Return the rate of a group at lr_scale 1; NaN while its lr is 0 or its update's size unknown."""
        assert self._start is not None
        if not self._base[group] > 0:
            return math.nan
        name = self._start.group_names[group]
        size = 1.0 if self._start.beta2[group] > 0 else self.sizes.get(name, math.nan)
        return self._base[group] * size * self.peaks.get(name, 1.0) / self._units.group[group]


UNEVEN = 2.0
"""Unevenness of rows (:func:`thermoopt.tensors.uneven_rows`) from which a matrix counts as trained. Measured
by this project: of 141 fresh networks (36 of timm, 46 of transformers, 59 of its own) 2 of 4157 matrices lie
above; all of MiniLM's, CREPE's, Resemblyzer's and two of MTCNN's networks', 71 % of Silero's, 29 % of the
smallest CREPE's."""

TRAINED = 0.25
"""Share of uneven matrices from which on a network counts as trained. Measured by this project: at most 0.02
of a fresh network's, 0.29 to 1 of those published, but for one of MTCNN's with two matrices."""


def trained_share(start: Start) -> float:
    """Return the share of a network's matrices that training has left uneven, frozen ones included.

    0 where fewer than two are uneven: one may be a table of word vectors in front of a fresh network.
    """
    known = [value for value in start.uneven if math.isfinite(value)]
    uneven = sum(value > UNEVEN for value in known)
    return uneven / len(known) if uneven >= 2 else 0.0
