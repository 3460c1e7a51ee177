"""Small tensors on their way to the host: requested at once, waited for only when needed."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["WARM_UP", "Arrival", "Fetch", "capturing", "send"]

Array = NDArray[np.float64]


class Fetch:
    """A small tensor on its way to the host.

    From CUDA it is copied to pinned memory without blocking, and an event tells when it has arrived. Other
    devices are read when the value is needed.

    Attributes:
        source: the tensor on its original device.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.source = tensor.detach()
        self._event: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))
            tensor = host
        self._tensor = tensor

    def ready(self) -> bool:
        """Whether :meth:`numpy` would return without waiting."""
        return self._event is None or self._event.query()

    def numpy(self) -> Array:
        """Return the values in float64, waiting for them if necessary."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor.detach().cpu().double().numpy()


WARM_UP = (
    "a CUDA graph cannot capture this step: its tensors, rates or state are new. Take a step outside of the "
    "capture first (torch: warm up on a side stream before capturing, and again after load_state_dict)"
)
"""What is said where a capture begins too early."""


def send(numbers: NDArray[Any], device: torch.device) -> Tensor:
    """Send an array to a device without waiting for it.

    Raises:
        RuntimeError: while a CUDA graph is being captured.
    """
    if device.type != "cuda":
        return torch.tensor(numbers, device=device)
    if capturing():
        raise RuntimeError(WARM_UP)
    return torch.from_numpy(numbers).pin_memory().to(device, non_blocking=True)


def capturing() -> bool:
    """Whether a CUDA graph is being captured: Python does not run at its replay, only what it launches."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


class Arrival(Protocol):
    """Numbers on their way to this rank's host."""

    def ready(self) -> bool:
        """Whether :meth:`numpy` would return without waiting."""

    def numpy(self) -> NDArray[np.float64]:
        """Return them, waiting if necessary."""
