"""How far a run has come from its start: the sums that control laws name, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["TRAVEL_SUMS", "Travel", "Weights"]

Array = NDArray[np.float64]

TRAVEL_SUMS = ("distance", "impulse")
"""What a controller may name in ``needs``."""


@dataclass(frozen=True)
class Weights:
    r"""How the coming step enters the sums of a law that lives on impulse.

    .. math::
        N \leftarrow qN + w_N\,\eta\langle g, x_0-\theta\rangle,\qquad
        S \leftarrow qS + w_S\,\eta g

    Attributes:
        keep: q, in [0, 1].
        work, impulse: :math:`w_N` and :math:`w_S`, finite and >= 0.
    """

    keep: float
    work: float
    impulse: float


@dataclass(frozen=True)
class Travel:
    r"""The sums that a controller named, an estimate from the sample, ``[n_layers]`` each.

    Attributes:
        distance2: :math:`\|\theta-x_0\|^2`, [th**2], x0 the parameters before the first controlled step.
        work: N of :class:`Weights`, [L] times the unit of the weights; zeros unless ``"impulse"`` is needed.
        impulse: :math:`\|S\|_1`, [L/th * th]; likewise.
    """

    distance2: Array
    work: Array
    impulse: Array
