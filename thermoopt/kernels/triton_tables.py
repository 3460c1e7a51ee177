"""Tables on a CUDA device that a Triton plan keeps up to date: addresses, and the settings of each tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["SETTINGS", "DeviceNumbers", "Setting", "SettingsTable"]

Setting = float | Sequence[float] | NDArray[Any] | Tensor
"""One number for all tensors, one per tensor, or a 0-d or ``[n]`` tensor that may change between steps."""

SETTINGS = ("lr", "factor", "weight_decay", "beta1", "beta2", "eps", "maximize")
"""Settings of each tensor's step, in the order of the kernel's arguments."""


class DeviceNumbers:
    """Numbers on the device, sent without waiting and only when they change.

    Inside a CUDA graph capture a necessary copy is recorded, from pinned host memory that is then kept for
    the graph's replays; one such block is allocated beforehand, since a capture may not allocate any.

    Args:
        size: numbers it holds.
        dtype: of the numbers.
        device: that holds them.
        baked: each graph keeps the numbers of its capture, as addresses require. Otherwise replays use what
            was sent last.

    Attributes:
        tensor: ``[size]``, always the same.
        sent: what was sent last, or None.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device, *, baked: bool) -> None:
        self.tensor = torch.zeros(size, dtype=dtype, device=device)
        self._cuda = device.type == "cuda"
        self._baked = baked
        self.sent: NDArray[Any] | None = None
        self._recorded = False  # a capture recorded what was sent last, and did not copy it
        self._spare: Tensor | None = None
        self._kept: list[Tensor] = []
        self._set_aside()

    def send(self, numbers: NDArray[Any]) -> None:
        """Make the table hold ``numbers``, ``[size]``, of its own dtype.

        Raises:
            RuntimeError: in a second capture with no step outside of capture since the first.
        """
        capturing = self._cuda and torch.cuda.is_current_stream_capturing()
        # a replay puts baked numbers back, so that after a capture what was sent last may not be there
        restored = self._baked and (capturing or self._kept)
        there = not restored and (capturing or not self._recorded)
        if there and self.sent is not None and np.array_equal(numbers, self.sent):
            return
        host = torch.from_numpy(numbers)
        if capturing:
            if self._spare is None:
                raise RuntimeError("take a step outside of capture between two captures of one plan")
            self._kept.append(self._spare)
            host, self._spare = self._spare.copy_(host), None
        elif self._cuda:
            host = host.pin_memory()
            self._set_aside()
        self.tensor.copy_(host, non_blocking=self._cuda)
        if self._kept and not (self._baked or capturing):
            for block in self._kept:  # from the device, after the replays before that have yet to read them
                block.copy_(self.tensor, non_blocking=True)
        self.sent, self._recorded = numbers.copy(), capturing

    def _set_aside(self) -> None:
        if self._cuda and self._spare is None:
            self._spare = torch.empty(
                self.tensor.shape, dtype=self.tensor.dtype, device="cpu", pin_memory=True
            )


class SettingsTable:
    """The settings of ``n`` tensors, each setting at a fixed place.

    A captured graph therefore always finds those that were sent last.

    Args:
        n: tensors.
        device: of the tensors.

    Attributes:
        owned: whether all settings last placed lie in the table, and none in a tensor of a user's.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self._n, self._device = n, device
        width = n + n % 2  # pointers aligned to 16 bytes save compilations
        self._numbers = DeviceNumbers(len(SETTINGS) * width, torch.float64, device, baked=False)
        self._views = list(self._numbers.tensor.view(len(SETTINGS), width).unbind())
        self._rows = np.zeros((len(SETTINGS), width))
        self._given: dict[str, Any] = {}
        self.owned = True

    def place(self, settings: Mapping[str, Setting | Sequence[bool]]) -> list[Any]:
        """Send what changed of some settings; return each as a device tensor followed by its stride.

        Raises:
            ValueError: for a tensor or a list of another length.
        """
        placed: list[Any] = []
        owned = True
        rows, given = self._rows, self._given
        for name, x in settings.items():
            k = SETTINGS.index(name)
            if isinstance(x, Tensor):
                if x.shape not in ((), (self._n,)):
                    raise ValueError(
                        f"{name} must have no dimension or {self._n} entries, not {tuple(x.shape)}"
                    )
                if (
                    x.device.type != "cpu" or self._device.type == "cpu"
                ):  # lr is on one device, layers on several
                    x = x.to(self._device, non_blocking=True)
                    placed += [x, x.stride(0) if x.ndim else 0]
                    owned = False
                    continue
                x = np.array(x.tolist())
            placed += [self._views[k], 1]
            number = type(x) in (float, int, bool)
            if number and given.get(name) == x:
                continue
            row = np.asarray(x, dtype=np.float64)
            if row.ndim and row.shape != (self._n,):
                raise ValueError(f"{name} has {len(row)} entries for {self._n} parameters")
            if rows is self._rows:
                rows, given = self._rows.copy(), dict(self._given)
            rows[k, : self._n] = 1.0 - 2.0 * row if name == "maximize" else row
            given[name] = x if number else None
        if rows is not self._rows:
            self._numbers.send(rows.reshape(-1))
            self._rows, self._given = rows, given
        self.owned = owned
        return placed
