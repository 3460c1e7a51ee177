"""What to change where a source of heat exceeds the work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["HEAT", "STEADY", "dominant", "split_advice"]

Array = NDArray[np.float64]

HEAT = ("d_iS_noise", "d_iS_momentum", "d_iS_wd")
"""Sources of heat."""

_WORDS = {"d_iS_noise": "noise", "d_iS_momentum": "momentum", "d_iS_wd": "weight decay"}

STEADY = 5
"""Consecutive readings in which a source must dominate: five, 10 steps apart, span the average of 50."""

SPREAD = 2.0
"""Largest ratio between the R_ie of those readings: the advised factor is known this well."""


def dominant(heat: Mapping[str, float]) -> str | None:
    """Return the name of the source that makes more than half of the heat, in magnitude, or None."""
    sizes = {name: abs(value) for name, value in heat.items() if not math.isnan(value)}
    total = sum(sizes.values())
    leading = max(sizes, key=sizes.__getitem__, default=None)
    if leading is None or not sizes[leading] > total / 2:
        return None
    return _WORDS[leading]


def split_advice(
    columns: Mapping[str, Array],
    types: Sequence[str],
    names: Sequence[str],
    settings: Sequence[tuple[float, float]],
) -> list[str]:
    r"""Return, by layer type, which source makes more heat than work, and what to change by how much.

    A layer counts if, in each of its last :data:`STEADY` readings, R_ie is defined and one and the same
    source makes more than half of the heat and alone exceeds the work, with R_ie within a factor of
    :data:`SPREAD`. The advised factor is that source over the work, summed over the type's layers and
    averaged over those
    readings: after the change, the source equals the work. Noise is proportional to one over the batch, decay
    to :math:`\lambda`, and overshoot, to first order, to the learning rate times the momentum's memory
    :math:`1/(1-\beta_1)`.

    Args:
        columns: ``d_eS``, ``R_ie`` and the sources of :data:`HEAT`, each ``[m, n_layers]``.
        types: types of the layers.
        names: names of the layers.
        settings: weight decay and beta1 of each layer's group.
    """
    heat = np.abs(np.stack([columns[name][-STEADY:] for name in HEAT]))
    work, r_ie = columns["d_eS"][-STEADY:], columns["R_ie"][-STEADY:]
    if len(work) < STEADY:
        return []
    with np.errstate(invalid="ignore"):
        leads = (heat > heat.sum(axis=0) / 2) & (heat > work)
        steady = np.isfinite(r_ie).all(axis=0) & (r_ie.max(axis=0) <= SPREAD * r_ie.min(axis=0))
    out = []
    for kind in dict.fromkeys(types):
        for source, name in enumerate(HEAT):
            own = [j for j, t in enumerate(types) if t == kind and steady[j] and leads[source, :, j].all()]
            if own:
                factor = float(heat[source][:, own].sum() / work[:, own].sum())
                worst = max(own, key=lambda j: r_ie[-1, j])
                out.append(
                    f"{len(own)} {kind} layer{'s' * (len(own) != 1)}: {_WORDS[name]} makes most of the heat, "
                    f"{factor:.2g} times the work (R_ie up to {r_ie[-1, worst]:.3g} in {names[worst]}). "
                    f"{_change(name, factor, *settings[worst])}"
                )
    return out


def _change(source: str, factor: float, wd: float, beta1: float) -> str:
    if source == "d_iS_noise":
        return (
            f"A batch {factor:.2g} times as large, or accumulating gradients over that many times more "
            "batches, would bring noise down to the level of the work."
        )
    if source == "d_iS_wd":
        return f"Lower weight_decay by a factor of {factor:.2g} ({wd:g} → {wd / factor:.2g})."
    shorter = max(0.0, 1 - factor * (1 - beta1))
    return (
        f"Updates overshoot: lower the learning rate by a factor of {factor:.2g}, or beta1 from "
        f"{beta1:g} to {shorter:.3g}."
    )
