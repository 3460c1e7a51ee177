"""How far a run has moved from its start: the sums that control laws ask for, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["TRAVEL_SUMS", "Travel", "Weights"]

Array = NDArray[np.float64]

TRAVEL_SUMS = ("distance", "impulse")
"""The names a controller may list in ``needs``."""


@dataclass(frozen=True)
class Weights:
    r"""Weights with which the next step enters the sums of a law that uses impulse.

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
    r"""The sums that a controller asked for, estimated from a sample of coordinates, ``[n_layers]`` each.

    Attributes:
        distance2: :math:`\|\theta-x_0\|^2`, [th**2], x0 the parameters before the first controlled step.
        work: N of :class:`Weights`, [L] times the unit of the weights; zeros unless ``"impulse"`` is needed.
        impulse: :math:`\|S\|_1`, [L/th * th]; zeros likewise.
    """

    distance2: Array
    work: Array
    impulse: Array
