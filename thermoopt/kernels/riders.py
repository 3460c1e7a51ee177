"""What a native step forms besides its own sums, on its way through memory: the forces of a law."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thermoopt.kernels.native_library import Call

__all__ = ["Riders"]


class Riders:
    """Which layer of which ``struct travel`` each tensor of a native plan is, in its coming step.

    Args:
        call: of the plan.
        n, chunks: its tensors and their chunks.
    """

    def __init__(self, call: Call, n: int, chunks: int) -> None:
        self._call, self._in_order = call, np.arange(n)
        self._travel, self._layer, self._work = np.zeros(n, np.int64), self._in_order.copy(), np.zeros(chunks)
        self._standing = np.zeros((chunks, 2))
        call.travel_layer, call.forces = self._layer.ctypes.data, self._work.ctypes.data
        call.standing = self._standing.ctypes.data

    @property
    def found_inf_at(self) -> int | None:
        """Address of the coming step's ``found_inf``."""
        return self._call.found_inf

    def add(self, travel: int, rows: NDArray[np.int64] | None) -> None:
        """Take some layers' forces in during the coming step.

        Args:
            travel: address of their ``struct travel``.
            rows: which tensor each of them is, -1 for none; None if layer i is tensor i for all.
        """
        if self._call.travel is None:
            self._travel[:] = 0
            self._call.travel = self._travel.ctypes.data
        if rows is None:
            self._travel[:], self._layer[:] = travel, self._in_order
        else:
            there = rows >= 0
            self._travel[rows[there]], self._layer[rows[there]] = travel, np.flatnonzero(there)

    def clear(self) -> None:
        """Forget them: the step was taken."""
        self._call.travel = None
