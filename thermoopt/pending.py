"""Sums of a measured step on their way to the host: asked for at once, waited for only when needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.kernels.sums import Sum

if TYPE_CHECKING:
    from thermoopt.travel import PendingTravel

__all__ = ["Fetch", "PendingSums", "capturing"]

Array = NDArray[np.float64]


class Fetch:
    """A small tensor under way to the host.

    From CUDA it is copied to pinned memory without blocking, and an event tells when it is there. Other
    devices are read when the value is needed.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))
            tensor = host
        self._tensor = tensor

    def ready(self) -> bool:
        """Whether :meth:`numpy` would return without waiting."""
        return self._event is None or self._event.query()

    def numpy(self) -> Array:
        """Return the values in float64, waiting for them if need be."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor.detach().cpu().double().numpy()


@dataclass
class PendingSums:
    """The sums of one measured step, part of them perhaps still on a device.

    Attributes:
        index: ``[k]`` layers measured, in the order of all columns below.
        lr, wd, beta1, beta2, t: ``[k]`` constants of the step.
        sums: ``[len(Sum), k]``; parts are added in by :meth:`arrays`.
        parts: device sums ``[pieces, len(Sum)]`` with the column each piece belongs to.
        late: device scalars with the array and the columns they belong in.
        found_inf: a fused GradScaler's flag, if there was one.
        raw: columns whose sums are of raw moments and still need their bias corrections.
        step: number of the step.
        travel: sums that a controller named.
    """

    index: NDArray[np.int64]
    lr: Array
    wd: Array
    beta1: Array
    beta2: Array
    t: Array
    sums: Array
    parts: list[tuple[NDArray[np.int64], Fetch]] = field(default_factory=list)
    late: list[tuple[Array, NDArray[np.int64], Fetch]] = field(default_factory=list)
    found_inf: Fetch | None = None
    raw: NDArray[np.bool_] | None = None
    step: int = 0
    travel: PendingTravel | None = None

    @classmethod
    def of(cls, index: Sequence[int] | NDArray[np.int64]) -> PendingSums:
        """Return an empty account of the given layers."""
        k = len(index)
        lr, wd, beta1, beta2, t = np.zeros((5, k))
        layers = np.asarray(index, dtype=np.int64)
        return cls(layers, lr, wd, beta1, beta2, t, sums=np.zeros((len(Sum), k)))

    def ready(self) -> bool:
        """Whether everything has arrived."""
        fetches = [f for _, f in self.parts] + [f for _, _, f in self.late]
        if self.found_inf is not None:
            fetches.append(self.found_inf)
        return all(fetch.ready() for fetch in fetches)

    def skip_cause(self) -> str | None:
        """Why the step says nothing before its sums are looked at, or None."""
        if len(self.index) == 0:
            return "no_gradients"
        if self.found_inf is not None and self.found_inf.numpy().any():
            return "found_inf"
        return None

    def arrays(self) -> tuple[Array, Array, dict[str, Array]]:
        """Return sums, step counts and constants on the host, adding pieces in a fixed order in float64."""
        for array, columns, fetch in self.late:
            array[columns] = fetch.numpy()
        self.late.clear()
        for columns, fetch in self.parts:
            np.add.at(self.sums.T, columns, fetch.numpy())
        self.parts.clear()
        if self.raw is not None:
            self.sums[:, self.raw] *= _corrections(
                self.t[self.raw], self.beta1[self.raw], self.beta2[self.raw]
            )
            self.raw = None
        constants = {"lr": self.lr, "wd": self.wd, "beta1": self.beta1, "beta2": self.beta2}
        return self.sums, self.t, constants


def _corrections(t: Array, beta1: Array, beta2: Array) -> Array:
    """Factors between sums of raw moments and of bias-corrected ones, ``[len(Sum), k]``.

    With raw moments P' = 1 / (sqrt(v) + eps sqrt(1 - beta2**t)) = P / sqrt(1 - beta2**t).
    """
    bc1, bc2 = 1 - beta1**t, 1 - beta2**t
    root = np.sqrt(bc2)
    out = np.ones((len(Sum), len(t)))
    out[Sum.A] = out[Sum.TU] = root / bc1
    out[Sum.B] = out[Sum.N1] = root
    out[Sum.UU] = (root / bc1) ** 2
    out[Sum.MU] = root / bc1**2
    out[Sum.SV] = root / bc2
    out[Sum.V] = 1 / bc2
    out[Sum.M2] = 1 / bc1**2
    out[Sum.C] = bc2
    return out


def capturing() -> bool:
    """Whether a CUDA graph is being captured: Python does not run at its replay, so nothing is measured."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
