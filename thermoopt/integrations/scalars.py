"""The part of a reading that a trainer logs: a few finite floats with flat names."""

from __future__ import annotations

import math

from thermoopt.account.reading import Quantities, Reading

__all__ = ["LAYER_SCALARS", "SCALARS", "run_scalars"]

SCALARS = ("sigma", "r", "wd_balance", "R_ie", "lr_eff", "coherence", "gaussianity")
"""Logged for the total and for every group: how fast the loss falls, distance from equilibrium, balance of
decay and growth, heat over work, the learning rate, and two factors that explain r. The history has all
quantities."""

LAYER_SCALARS = ("sigma", "r", "wd_balance", "lr_eff")
"""Logged for every layer: only a few, since a model has hundreds of layers."""


def run_scalars(
    reading: Reading, *, groups: bool = False, layers: bool = False, prefix: str = "thermo/"
) -> dict[str, float]:
    """Select the values of a reading to log.

    These are ``thermo/sigma`` and the other :data:`SCALARS` of the total, and
    ``thermo/equilibrium_fraction``, the fraction of layers with r near 1. Undefined and infinite values are
    left out.

    Args:
        reading: the reading.
        groups: add ``thermo/<group>/r`` and so on, :data:`SCALARS` of every parameter group.
        layers: add ``thermo/layer/<name>/r`` and so on, :data:`LAYER_SCALARS` of every layer.
        prefix: prefix of every name.

    Returns:
        Finite floats by name.
    """
    out = _of(reading.total, SCALARS, prefix)
    out[f"{prefix}equilibrium_fraction"] = reading.equilibrium_fraction()
    if groups:
        for name, group in zip(reading.group_names, reading.groups, strict=True):
            out.update(_of(group, SCALARS, f"{prefix}{name}/"))
    if layers:
        for name, layer in reading.layers.items():
            out.update(_of(layer, LAYER_SCALARS, f"{prefix}layer/{name}/"))
    return {name: value for name, value in out.items() if math.isfinite(value)}


def _of(quantities: Quantities, names: tuple[str, ...], prefix: str) -> dict[str, float]:
    return {f"{prefix}{name}": float(getattr(quantities, name)) for name in names}
