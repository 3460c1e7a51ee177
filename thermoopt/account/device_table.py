"""Running averages on the tensors' device: steps are averaged there; the host reads what it records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.account.meter import STATE_ROWS, Meter
from thermoopt.kernels import CAUSES, RUN, average_in, count
from thermoopt.tensors import Fetch, PendingTravel

__all__ = ["DEVICE_LAG", "DeviceSums", "DeviceTable", "FetchedTable", "reading_lag"]

Array = NDArray[np.float64]


DEVICE_LAG = 1
"""Steps by which a reading from a device is late. It never varies, so that runs are repeatable and ranks that
hold the same numbers decide alike."""


def reading_lag(params: Sequence[Tensor]) -> int:
    """Return the number of steps by which readings are handed over late: 0 for parameters on CPU, else 1.

    On CPU the sums of a step are on the host when it ends. Those of sharded layers on CPU are waited for, so
    that a controlled run takes the same rates on any number of ranks.
    """
    return DEVICE_LAG if params and params[0].device.type != "cpu" else 0


@dataclass(frozen=True)
class DeviceSums:
    """The sums of a measured step on their device.

    Attributes:
        index: ``[k]`` layers measured; None for all in order.
        sums: ``[k, len(Sum)]``, float64, with bias corrections.
        constants: ``[5, k]``, float64: lr, weight decay, beta1, beta2, the tensors' own step counts.
        found_inf: a fused GradScaler's flag, if there was one.
    """

    index: Tensor | None
    sums: Tensor
    constants: Tensor
    found_inf: Tensor | None = None


@dataclass
class FetchedTable:
    """Averages as they were after a step, in flight from a device, and the travel of that step."""

    step: int
    block: Fetch
    record: bool
    travel: PendingTravel | None = None

    def ready(self) -> bool:
        """Whether they have arrived."""
        return self.block.ready()


class DeviceTable:
    """Averages and counters of a run on one device, as a meter keeps them on the host.

    Only :attr:`steps` waits for the device. All operations but :meth:`fetch` and the constructor can be
    captured in a graph.

    Args:
        meter: holds the averages to start from.
        device: that keeps them; it must support float64.

    Attributes:
        table: ``[STATE_ROWS, n_layers]`` of a :class:`~thermoopt.account.meter.Meter`.
        run: ``[RUN]`` counters (:data:`thermoopt.kernels.averages.RUN`).
    """

    def __init__(self, meter: Meter, device: torch.device) -> None:
        state, run, missing = meter.pack()
        host = torch.from_numpy(np.concatenate([run, state.reshape(-1)]))
        self.device = device
        self._block = host.to(device)
        self.run = self._block[:RUN]  # first, so that both begin on 16 bytes
        self.table = self._block[RUN:].view(STATE_ROWS, -1)
        self._missing = None if missing is None else torch.from_numpy(missing).to(device)

    @property
    def steps(self) -> int:
        """Number of steps counted, including replays; waits for the device."""
        return int(self.run[0])

    def count(self) -> None:
        """Count a step."""
        count(self.run)

    def skip(self, cause: str) -> None:
        """Count a measured step that moves no average."""
        self.run[3 + CAUSES.index(cause)].add_(1)

    def enter(self, done: DeviceSums) -> None:
        """Average in the sums of the last counted step, unless the kernel refuses them."""
        average_in(
            self.table,
            self.run,
            done.index,
            done.sums,
            done.constants,
            found_inf=done.found_inf,
            missing=self._missing,
        )

    def fetch(self) -> Fetch:
        """Request averages and counters as they are after the work launched so far."""
        return Fetch(self._block if self.device.type == "cuda" else self._block.clone())

    @staticmethod
    def unpack(block: Array) -> tuple[Array, Array]:
        """Split what was fetched into counters ``[RUN]`` and table ``[STATE_ROWS, n_layers]``."""
        return block[:RUN], block[RUN:].reshape(STATE_ROWS, -1)
