"""The sums of a law's forces on CUDA, in launches whose number does not grow with the layers.

The Triton counterpart of ``travel.c`` on CPU (:mod:`thermoopt.kernels.native_travel`): one launch adds the
forces on all sampled coordinates, one the work of each layer. Rates and weights are read from the device, so
that a captured CUDA graph uses those that were :meth:`~DeviceTravelPlan.put` last. Not run on a GPU yet:
tested with Triton's interpreter, and compiled for compute capability 8.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.kernels.native_checks import PLAIN
from thermoopt.kernels.travel_layers import TravelLayers, are_views
from thermoopt.kernels.triton_checks import DTYPES
from thermoopt.kernels.triton_kernels import IMPORT_ERROR, reduce_kernel
from thermoopt.kernels.triton_launch import Launch
from thermoopt.kernels.triton_tables import DeviceNumbers
from thermoopt.kernels.triton_travel_kernels import distance_kernel, force_kernel, work_kernel

if IMPORT_ERROR is None:
    import triton.language as tl

__all__ = ["DeviceTravelPlan"]

BLOCK = 1024
"""Elements that a program handles (not tuned on a GPU)."""

REDUCE_BLOCK = 256
"""Partial sums added at a time."""


class DeviceTravelPlan(TravelLayers):
    """Tables for the samples of some layers of one dtype on one device.

    Args:
        params: ``n`` layers.
        samples: views of them, ``[width]`` or ``[rows, width]`` each.
        start: x0 of all samples one after the other, of the parameters' dtype.
        impulse: S likewise, float32; None if no forces are to be summed.
        done: N, ``[n]``, float64; None likewise.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        samples: Sequence[Tensor],
        start: Tensor,
        impulse: Tensor | None,
        done: Tensor | None,
    ) -> None:
        super().__init__(params, samples)
        self._n = n = len(params)
        self._start, self._impulse, self._done = start, impulse, done
        flat = [s if s.ndim == 2 else s[None] for s in samples]
        sizes = np.array([s.numel() for s in samples], np.int64)
        width, distance = np.array([(max(1, s.shape[1]), s.stride(0)) for s in flat], np.int64).T
        geometry = np.stack([sizes, width, distance, np.cumsum(sizes) - sizes])
        counts = -(-sizes // BLOCK)
        last = np.cumsum(counts)
        owner = np.repeat(np.arange(n), counts)
        self._chunks = int(counts.sum())
        self._geometry = self._there(geometry)
        self._first, self._last = self._there(last - counts), self._there(last)
        self._owner = self._there(owner.astype(np.int32))
        self._index = self._there((np.arange(self._chunks) - (last - counts)[owner]).astype(np.int32))
        self._pointers = DeviceNumbers(2 * n, torch.int64, self._device, baked=True)
        self._map = self._pointers.tensor, self._geometry, self._owner, self._index
        self._rates = DeviceNumbers(n, torch.float64, self._device, baked=False)
        self._weights = DeviceNumbers(3, torch.float64, self._device, baked=False)
        self._partials = torch.zeros(2, self._chunks, dtype=torch.float64, device=self._device)
        self._triton_dtype = getattr(tl, str(start.dtype).removeprefix("torch."))
        self._launch_forces, self._launch_work = Launch(), Launch()
        self._launch_distance, self._launch_reduce = Launch(), Launch()

    def _there(self, numbers: NDArray[Any]) -> Tensor:
        return torch.from_numpy(numbers).to(self._device)

    @staticmethod
    def takes(params: Sequence[Tensor], samples: Sequence[Tensor]) -> bool:
        """Whether the kernels can read these layers and their samples."""
        return are_views(samples, params) and all(
            type(p) in PLAIN and p.dtype in DTYPES and p.layout is torch.strided and s.numel() < 1 << 31
            for s, p in zip(samples, params, strict=True)
        )

    def put(self, rates: NDArray[np.float64], keep: float, work: float, impulse: float) -> None:
        """Make the next :meth:`push`, or replay of one, take these rates and weights."""
        self._rates.send(rates)
        self._weights.send(np.array([keep, work, impulse]))

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
        """Add the forces of the layers' gradients; return False, with nothing done, if one cannot be read.

        Args:
            rates: effective learning rate of each layer, ``[n]``, or what ``base`` is multiplied by.
            keep, work, impulse: the weights of :class:`~thermoopt.physics.travel.Weights`.
            grad_scale, found_inf: the values of a fused GradScaler, one number each.
            base: a learning rate on the device, of no dimension or ``[n]``, read when the kernel runs.
            at: addresses of the gradients, ``[n]``, 0 for none; None if they have not been checked yet.
        """
        if at is None:
            at = self.grads_at()
            if at is None:
                return False
        found = np.where(at != 0, at + self.offset, 0)
        self._pointers.send(np.concatenate([self.params_at + self.offset, found]))
        self.put(rates, keep, work, impulse)
        self._launch(self._near(grad_scale), self._near(found_inf), base)
        return True

    def measure(self) -> Tensor:
        """Return squared displacement and absolute impulse, ``[n, 2]``, float64, on the device."""
        if self._pointers.sent is None:
            own = self.params_at + self.offset
            self._pointers.send(np.concatenate([own, np.zeros_like(own)]))
        n = self._n
        out = torch.empty(n, 2, dtype=torch.float64, device=self._device)
        with self._on_device():
            if self._chunks:
                self._launch_distance(
                    distance_kernel,
                    (self._chunks, 1, 1),
                    (*self._map, self._start, self._impulse, self._partials, n, self._chunks),
                    {"DTYPE": self._triton_dtype, "BLOCK": BLOCK},
                )
            self._launch_reduce(
                reduce_kernel,
                (n, 2, 1),
                (self._partials, self._first, self._last, out, None, None, self._chunks),
                {"COLUMNS": 2, "BLOCK": REDUCE_BLOCK},
            )
        return out

    def _launch(self, scale: Tensor | None, stop: Tensor | None, base: Tensor | None) -> None:
        """Launch the kernels that add a step's forces, which is all that a graph captures of it."""
        owned = scale is None and stop is None and base is None
        sums = self._start, self._impulse, self._partials, self._n
        with self._on_device():
            if self._chunks:
                stride = 0 if base is None or base.ndim == 0 else base.stride(0)
                self._launch_forces(
                    force_kernel,
                    (self._chunks, 1, 1),
                    (*self._map, self._rates.tensor, base, stride, self._weights.tensor, scale, stop, *sums),
                    {"DTYPE": self._triton_dtype, "BLOCK": BLOCK},
                    owned=owned,
                )
            self._launch_work(
                work_kernel,
                (len(self._params), 1, 1),
                (self._partials, self._first, self._last, self._weights.tensor, stop, self._done),
                {"BLOCK": REDUCE_BLOCK},
                owned=owned,
            )

    def _near(self, x: Tensor | None) -> Tensor | None:
        return x if x is None else x.to(self._device, non_blocking=True)

    def _on_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
