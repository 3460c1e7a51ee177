"""The layers' own units: the scale that a rate D multiplies, and the factors that make it so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thermoopt.controllers.base import Start

__all__ = ["Units", "layer_units"]

FALLBACK = 0.02
"""Unit of a model that is zero everywhere: the initial scale of GPT-2's matrices."""

STEPS_AN_OCTAVE = 8
"""Layer factors are rounded to powers of 2**(1/8), 9 % apart: layers of like shape then share one factor,
and a torch step that takes one group a factor takes few. No loss of this project's measurements resolves 5 %
of a rate."""


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
    """Return s_l: the rms of a matrix at the start; vectors and zero matrices take the typical one.

    Biases and gains start at 0 or 1, which says nothing of how far they are to go, and so do matrices that
    start at 0 (LoRA's B): they take the geometric mean of the matrices that do not; without any, that of all
    layers that are not 0; without any, :data:`FALLBACK`.

    Args:
        start: the parameters before the first step.
        fixed: units by layer name that were told before: layers that join in mid-run do not change them.

    Returns:
        The :class:`Units`.
    """
    rms = np.asarray(start.rms, dtype=np.float64)
    known = (np.asarray(start.ndim) >= 2) & (rms > 0)
    typical = _geometric_mean(rms[known]) or _geometric_mean(rms[rms > 0]) or FALLBACK
    fresh = np.where(known, rms, typical).tolist()
    units = np.array([(fixed or {}).get(name, s) for name, s in zip(start.names, fresh, strict=True)])
    groups = np.asarray(start.group_of)
    group = tuple(_geometric_mean(units[groups == g]) or typical for g in range(len(start.group_names)))
    exponents = np.log2(units / np.asarray(group)[groups]) if len(units) else units
    factors = 2.0 ** (np.round(exponents * STEPS_AN_OCTAVE) / STEPS_AN_OCTAVE)
    return Units(units, group, dict(zip(start.names, factors.tolist(), strict=True)))


def _geometric_mean(values: NDArray[np.float64] | Sequence[float]) -> float:
    return math.exp(float(np.log(values).mean())) if len(values) else 0.0
