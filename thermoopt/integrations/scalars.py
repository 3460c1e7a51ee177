"""What a trainer logs of a reading: a few finite floats with flat names."""

from __future__ import annotations

import math

from thermoopt.account.reading import Quantities, Reading

__all__ = ["LAYER_SCALARS", "SCALARS", "run_scalars"]

SCALARS = ("sigma", "r", "wd_balance", "R_ie", "lr_eff", "coherence", "gaussianity")
"""Of the total and of every group: how fast the loss falls, how far from equilibrium, whether decay balances
growth, heat over work, the rate in force, and two that say why r is what it is. The history has all."""

LAYER_SCALARS = ("sigma", "r", "wd_balance", "lr_eff")
"""Of every layer: a model has hundreds."""


def run_scalars(
    reading: Reading, *, groups: bool = False, layers: bool = False, prefix: str = "thermo/"
) -> dict[str, float]:
    """Select what a logger gets of a reading.

    ``thermo/sigma`` and the others of :data:`SCALARS` in total, and ``thermo/equilibrium_fraction``, the
    share of layers with r near 1. Undefined and infinite values are left out.

    Args:
        reading: an account of the run.
        groups: add ``thermo/<group>/r`` and so on, :data:`SCALARS` of every parameter group.
        layers: add ``thermo/layer/<name>/r`` and so on, :data:`LAYER_SCALARS` of every layer.
        prefix: stands before every name.

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
