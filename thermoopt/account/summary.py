"""An epoch, or a whole run, in a few plain numbers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from thermoopt.account.history import HistoryLike
from thermoopt.account.reading import Reading
from thermoopt.physics import dispersion

__all__ = ["epoch_record", "mean", "run_summary", "running_mean"]

Array = NDArray[np.float64]


def mean(values: Array) -> float:
    """Return the mean of the finite values, NaN if there are none."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else math.nan


def running_mean(x: Array, width: int) -> Array:
    """Return the means of ``width`` neighbours, ``[n - width + 1]``."""
    return np.convolve(x, np.full(width, 1 / width), mode="valid")


def epoch_record(history: HistoryLike, first: int, last: int) -> dict[str, float]:
    """Return means over the readings of steps ``first`` to ``last``: sigma, r, D and rho_momentum.

    sigma [L per step] and the others (no unit) are means of readings, each of which is itself a ratio of
    averages. D is the mean over the layers' readings that were kept, which are thinned over a long run. NaN
    if there is no reading.
    """
    steps, layer_steps = history.steps, history.layer_steps
    own = (steps >= first) & (steps <= last)
    layers = history.layers("r")[(layer_steps >= first) & (layer_steps <= last)]
    return {
        "sigma": mean(history.total("sigma")[own]),
        "r": mean(history.total("r")[own]),
        "D": mean(np.array([dispersion(row) for row in layers])),
        "rho_momentum": mean(history.total("rho_momentum")[own]),
    }


def run_summary(history: HistoryLike, reading: Reading, losses: Array) -> dict[str, float | int]:
    """Return means over the readings kept, and the last reading's values.

    ``rho_final`` and ``distance_final`` are present if they were tracked, ``loss_mean`` and ``loss_final`` if
    a loss was reported.
    """
    total = reading.total
    means = epoch_record(history, 0, int(history.steps.max(initial=0)))
    final = {"sigma": total.sigma, "r": total.r, "D": reading.dispersion, "rho_momentum": total.rho_momentum}
    out: dict[str, float | int] = {"n_readings": len(history.steps)}
    for name, value in means.items():
        out[f"{name}_mean"], out[f"{name}_final"] = value, final[name]
    for name in ("rho", "distance"):
        value = getattr(total, name)
        if not math.isnan(value):
            out[f"{name}_final"] = value
    if losses.size:
        out["loss_mean"], out["loss_final"] = mean(losses), float(losses[-1])
    out["eq_frac_final"] = reading.equilibrium_fraction()
    return out
