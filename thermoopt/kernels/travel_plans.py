"""The kernels that sum a law's forces: one interface, an implementation for CPU and one for CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.kernels import native_travel
from thermoopt.kernels.native import Plan

__all__ = ["Addresses", "TravelKernel", "travel_plan"]


@dataclass(frozen=True)
class Addresses:
    """Addresses of a step's tensors, found and checked by a kernel that is about to read them.

    Attributes:
        layer: ``[k]`` the layers that have a gradient; the same array as long as ``params`` is the same.
        params, grads: ``[k]`` addresses; gradients have the memory layout of their parameters.
        step: the kernel's plan, if it can add the forces on its way.
    """

    layer: NDArray[np.int64]
    params: NDArray[np.int64]
    grads: NDArray[np.int64]
    step: Plan | None = None


class TravelKernel(Protocol):
    """Adds the forces on samples of layers to S and N (:class:`~thermoopt.physics.travel.Weights`).

    Attributes:
        params_at: addresses of the layers, ``[n]``.
    """

    params_at: NDArray[np.int64]

    @property
    def stands(self) -> bool:
        """Whether the layers are still at the same addresses."""

    def grads_at(self, grads: Sequence[Tensor | None] | None = None) -> NDArray[np.int64] | None:
        """Return the gradients' addresses, ``[n]``, 0 for none, or None if one cannot be read."""

    def put(self, rates: NDArray[np.float64], keep: float, work: float, impulse: float) -> None:
        """Make replays of a captured :meth:`push` take these rates and weights."""

    def push(
        self,
        rates: NDArray[np.float64],
        keep: float,
        work: float,
        impulse: float,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        base: Tensor | None = None,
        at: NDArray[np.int64] | None = None,
    ) -> bool:
        """Add the forces of the layers' gradients; return False, with nothing done, if one cannot be read."""

    def measure(self) -> Tensor:
        """Return squared displacement and absolute impulse, ``[n, 2]``, float64."""


def travel_plan(
    params: Sequence[Tensor],
    samples: Sequence[Tensor],
    start: Tensor,
    impulse: Tensor | None,
    done: Tensor | None,
) -> TravelKernel | None:
    """Return the kernel for some layers of one dtype on one device, or None where none can read them.

    Args:
        params, samples, start, impulse, done: as for :class:`~thermoopt.kernels.native_travel.TravelPlan`.
    """
    if start.device.type == "cpu":
        if impulse is None or done is None or not native_travel.TravelPlan.takes(params, samples):
            return None
        return native_travel.TravelPlan(params, samples, start, impulse, done)
    if start.device.type != "cuda":
        return None
    # Triton is imported when first needed
    from thermoopt.kernels import triton, triton_travel

    if not triton.available() or triton.trial() or not triton_travel.DeviceTravelPlan.takes(params, samples):
        return None
    return triton_travel.DeviceTravelPlan(params, samples, start, impulse, done)
