"""The forces of a step on sampled coordinates on CPU: the Python side of ``travel.c``.

A step of ``native.c`` forms them on its way (:meth:`TravelPlan.carry`), or a pass of their own does: the sums
have the same bits. It forms what a reading tells of them too: passes of their own, over samples out of cache,
took 5 ms at 5 M parameters, half of a measured step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.kernels.native import Plan
from thermoopt.kernels.native_checks import CODES, unreadable
from thermoopt.kernels.native_chunks import CHUNK
from thermoopt.kernels.native_library import LIBRARY, most_threads, threads_now
from thermoopt.kernels.travel_layers import TravelLayers, are_views

__all__ = ["TravelPlan"]

SERIAL_BELOW = 1 << 15
"""Number of sampled elements below which one thread takes them all: 20 us on one thread."""

COLUMNS = 3
"""Sums of a layer: squared displacement, absolute impulse and N."""

BESIDE, TAKEN = 16, 1024
"""Elements of a row and sampled elements of a chunk at most, as in ``travel.h``."""

_POINTERS = "param grad first rows width stride at rate start impulse done sums grad_scale found_inf".split()


class _Call(ctypes.Structure):
    """Mirror of ``struct travel`` in ``travel.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_double) for name in ("keep", "work", "weight")),
        *((name, ctypes.c_int64) for name in ("n", "part")),
        *((name, ctypes.c_int32) for name in ("dtype", "num_threads", "forces", "rest")),
    )


def _entry() -> ctypes._NamedFuncPointer | None:
    """The library's function; None if the library is missing or of another version."""
    if LIBRARY is None:
        return None
    try:
        function, size = LIBRARY.thermoopt_travel, LIBRARY.thermoopt_travel_size
    except AttributeError:
        return None
    function.argtypes, function.restype = [ctypes.c_void_p], None
    size.restype = ctypes.c_int64
    return function if size() == ctypes.sizeof(_Call) else None


_FUNCTION = _entry()


def _is_copied(sample: Tensor) -> bool:
    """Whether the library has room for a sample of several rows."""
    width, stride = sample.shape[1], sample.stride(0)
    return width <= BESIDE <= stride and (CHUNK // stride + 2) * width <= TAKEN


class TravelPlan(TravelLayers):
    """Tables for the samples of some layers of one dtype on CPU.

    Args:
        params: ``n`` layers.
        samples: views of them, ``[width]`` or ``[rows, width]`` each.
        start: x0 of all samples one after the other, of the parameters' dtype.
        impulse: S likewise, float32.
        done: N, ``[n]``, float64.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        samples: Sequence[Tensor],
        start: Tensor,
        impulse: Tensor,
        done: Tensor,
    ) -> None:
        super().__init__(params, samples)
        self._kept = start, impulse, done
        flat = [s if s.ndim == 2 else s[None] for s in samples]
        sizes = np.array([s.numel() for s in samples], np.int64)
        self._tables: dict[str, NDArray] = {
            "param": self.params_at,
            "grad": np.zeros(len(flat), np.int64),
            "first": self.offset // start.element_size(),
            "rows": np.array([s.shape[0] for s in flat], np.int64),
            "width": np.array([s.shape[1] for s in flat], np.int64),
            "stride": np.array([max(1, s.stride(0)) for s in flat], np.int64),
            "at": np.cumsum(sizes) - sizes,
            "rate": np.zeros(len(flat)),
        }
        self._call = _Call(
            **{name: table.ctypes.data for name, table in self._tables.items()},
            start=start.data_ptr(),
            impulse=impulse.data_ptr(),
            done=done.data_ptr(),
            n=len(flat),
            part=CHUNK,
            dtype=CODES[start.dtype],
        )
        self._pointer = ctypes.byref(self._call)
        self._at = ctypes.addressof(self._call)
        self._most_threads = most_threads(start.numel(), SERIAL_BELOW)

    @staticmethod
    def takes(params: Sequence[Tensor], samples: Sequence[Tensor]) -> bool:
        """Whether the library is available and can read these layers and their samples."""
        return (
            _FUNCTION is not None
            and all(p.dtype in CODES and unreadable("param", p) is None for p in params)
            and are_views(samples, params)
            and all(s.ndim == 1 or len(s) == 1 or _is_copied(s) for s in samples)
        )

    def put(self, rates: NDArray[np.float64], keep: float, work: float, impulse: float) -> None:
        """Do nothing: no graph captures a step on CPU."""

    def measure(self) -> Tensor:
        """Return squared displacement and absolute impulse, ``[n, 2]``, float64."""
        out, call = self._room(), self._call
        call.forces = call.rest = False
        self._run()
        call.sums = None
        return out[:, :2]

    def _room(self) -> Tensor:
        """Let the next run write its sums to a new tensor; return it."""
        self._sums = torch.zeros(len(self._params), COLUMNS, dtype=torch.float64, device="cpu")
        self._call.sums = self._sums.data_ptr()
        return self._sums

    def push(
        self,
        rates: NDArray[np.float64] | Sequence[float],
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
            rates: effective learning rate of each layer, ``[n]``.
            keep, work, impulse: the weights of :class:`~thermoopt.physics.travel.Weights`.
            grad_scale, found_inf: the values of a fused GradScaler, one number each.
            base: must be None: a rate on the host is in ``rates``.
            at: addresses of the gradients, ``[n]``, 0 for none; None if they have not been checked yet.
        """
        assert _FUNCTION is not None
        if base is not None:
            return False
        if at is None:
            at = self.grads_at()
            if at is None:
                return False
        for x in (grad_scale, found_inf):
            if x is not None and (unreadable("scale", x) or x.dtype is not torch.float32):
                return False
        self._tables["rate"][:] = rates
        self._tables["grad"][:] = at
        self._weigh(keep, work, impulse)
        scale, skip = (None if x is None else x.data_ptr() for x in (grad_scale, found_inf))
        call = self._call
        call.grad_scale, call.found_inf = scale, skip
        call.sums, call.forces, call.rest = None, True, False
        self._run()
        return True

    def _weigh(self, keep: float, work: float, impulse: float) -> None:
        call = self._call
        call.keep, call.work, call.weight = keep, work, impulse

    def _run(self) -> None:
        assert _FUNCTION is not None
        self._call.num_threads = threads_now(self._most_threads)
        _FUNCTION(self._pointer)

    def carry(
        self,
        step: Plan,
        rows: NDArray[np.int64] | None,
        at: NDArray[np.int64] | None,
        keep: float,
        work: float,
        impulse: float,
        due: bool = False,
    ) -> Tensor | None:
        """Let a step that is about to be taken add the forces of its gradients on its way, at its own rates.

        Args:
            step: what takes it, called with ``before`` and not returned from it yet.
            rows: which of its tensors each layer is, -1 for one that it does not step, ``[n]``; None if
                layer i is tensor i for all.
            at: addresses of the gradients, ``[n]``, 0 for none; None if there are all.
            keep, work, impulse: as for :meth:`push`.
            due: whether it is to form the sums of :meth:`measure` as well, of the parameters before the step,
                its forces included.

        Returns:
            Squared displacement, absolute impulse and N, ``[n, 3]``, which are 0 until the step has been
            taken, and after one that moves nothing; None unless they are due.
        """
        call = self._call
        self._weigh(keep, work, impulse)
        call.sums = None
        out = self._room() if due else None
        step.riders.add(self._at, rows)
        if at is not None and not at.all():  # what the step does not come across forgets too
            self._tables["grad"][:] = at
            call.grad_scale, call.found_inf = None, step.riders.found_inf_at
            call.forces = call.rest = True
            self._run()
        return out
