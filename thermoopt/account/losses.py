"""The reported losses: the last one, and a bounded curve of all."""

from __future__ import annotations

import math
import numbers
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.account.pending import MAX_PENDING
from thermoopt.tensors import Fetch

__all__ = ["Losses", "as_loss"]

MAX_LOSSES = 10_000
"""Losses to keep, as many as a history keeps readings: more than a picture has pixels for."""


class Losses:
    """Losses by optimizer step, evenly spaced over the whole run.

    When full, every second loss is dropped and the distance doubles, as with the layers of a history. A loss
    on a device is not waited for; a loss that is not finite is counted but not kept. If several losses are
    reported for one step, the last one counts.

    Args:
        max_losses: losses to keep, at least 2.

    Attributes:
        last: the last finite loss that arrived, or None.
        bad: number of steps whose loss was NaN or infinite.
    """

    def __init__(self, max_losses: int = MAX_LOSSES) -> None:
        if max_losses < 2:
            raise ValueError(f"max_losses must be >= 2, got {max_losses}")
        self._max = max_losses
        self._curve: list[tuple[int, float]] = []
        self._stride = 1
        self._count = 0
        self._taken = self._bad_at = -1
        self._coming: deque[tuple[int, Fetch]] = deque()
        self.last: float | None = None
        self.bad = 0

    def report(self, step: int, loss: object) -> None:
        """Record the loss of a step.

        Raises:
            TypeError, ValueError: unless it is a number or a floating tensor with one element.
        """
        self._coming.append((step, Fetch(as_loss(loss))))
        self.settle(wait=False)

    def settle(self, wait: bool) -> None:
        """Record the losses that have arrived; with ``wait``, all that are in flight."""
        while self._coming and (wait or self._coming[0][1].ready() or len(self._coming) > MAX_PENDING):
            step, fetch = self._coming.popleft()
            self._take(step, float(fetch.numpy()))

    def _take(self, step: int, value: float) -> None:
        if not math.isfinite(value):
            self.bad += step != self._bad_at
            self._bad_at = step
            return
        self.last = value
        if step == self._taken:  # reported again
            if self._curve and self._curve[-1][0] == step:
                self._curve[-1] = (step, value)
            return
        self._taken = step
        if self._count % self._stride == 0:
            self._curve.append((step, value))
            if len(self._curve) >= self._max:
                self._curve = self._curve[::2]
                self._stride *= 2
        self._count += 1

    def rewind(self, step: int, last: float | None, bad: int) -> None:
        """Forget losses after ``step``: a checkpoint was loaded, which has these ``last`` and ``bad``."""
        self._coming.clear()
        self._curve = [point for point in self._curve if point[0] <= step]
        self._count = len(self._curve) * self._stride
        self._taken = self._bad_at = -1
        self.last, self.bad = last, bad

    def __len__(self) -> int:
        """Number of losses kept."""
        return len(self._curve)

    @property
    def steps(self) -> NDArray[np.int64]:
        """Optimizer steps of the losses kept, ``[n]``."""
        return np.array([step for step, _ in self._curve], dtype=np.int64)

    @property
    def values(self) -> NDArray[np.float64]:
        """The losses kept, ``[n]``."""
        return np.array([value for _, value in self._curve], dtype=np.float64)


def as_loss(loss: object, name: str = "loss") -> Tensor:
    """Return a loss as a 0-d tensor.

    Args:
        loss: a number or a floating tensor with one element.
        name: for error messages.

    Raises:
        TypeError, ValueError: if it is neither.
    """
    if isinstance(loss, Tensor):
        if loss.numel() != 1 or not loss.is_floating_point():
            raise ValueError(
                f"{name} must be one floating-point element, got a tensor of shape "
                f"{tuple(loss.shape)} and {loss.dtype}"
            )
        return loss.detach().reshape(())
    if isinstance(loss, bool) or not isinstance(loss, numbers.Real):
        raise TypeError(f"{name} must be a number or a tensor with one element, got {loss!r}")
    return torch.tensor(float(loss), dtype=torch.float64, device="cpu")
