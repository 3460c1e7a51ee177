"""Sums of a measured step on their way to the host: requested at once, waited for only when needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.account.device_table import DeviceSums, DeviceTable
from thermoopt.physics.sums import Sum
from thermoopt.tensors import Fetch, send

if TYPE_CHECKING:
    from thermoopt.tensors import Arrival, PendingTravel, Sharding

__all__ = ["MAX_KEPT", "MAX_PENDING", "Averaged", "Done", "KeptSums", "PendingSums", "SharedSteps", "launch"]

Array = NDArray[np.float64]

MAX_PENDING = 8
"""Number of measured steps whose sums may be in flight from a device before a step waits for the oldest."""

MAX_KEPT = 64
"""Measured steps kept for one message at most: 10 KB a layer."""

_PRESENT, _FOUND_INF, _TRAVEL = len(Sum), len(Sum) + 1, len(Sum) + 2
_WIDTH = _TRAVEL + 3
"""Columns that ranks add up for each layer and step: the sums, whether the rank measured it, whether it found
an infinity, and the three sums of :class:`~thermoopt.physics.Travel`."""


@dataclass
class PendingSums:
    """The sums of one measured step, some of them perhaps still on a device.

    Attributes:
        index: ``[k]`` layers measured, in the order of all columns below.
        lr, wd, beta1, beta2, t: ``[k]`` constants of the step.
        sums: ``[len(Sum), k]``; parts are added in by :meth:`arrays`.
        parts: device sums ``[pieces, len(Sum)]`` with the column each piece belongs to.
        late: device scalars with the array and the columns they belong in.
        found_inf: a fused GradScaler's flag, if there was one.
        raw: columns whose sums are of raw moments and still need their bias corrections.
        step: number of the step.
        travel: sums that a controller needs.
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
        """Return sums of zero for the given layers."""
        k = len(index)
        lr, wd, beta1, beta2, t = np.zeros((5, k))
        layers = np.asarray(index, dtype=np.int64)
        return cls(layers, lr, wd, beta1, beta2, t, sums=np.zeros((len(Sum), k)))

    def whole_sums(self, device: torch.device) -> Tensor:
        """Sums of this rank with their bias corrections, ``[k, len(Sum)]``, without waiting for a device."""
        out = send(self.sums.T.copy(), device)
        for columns, fetch in self.parts:
            out.index_add_(0, send(columns, device), fetch.source.to(out))
        if self.raw is None:
            return out
        t = send(self.t, device)
        for array, columns, fetch in self.late:
            if array is self.t:
                t.index_copy_(0, send(columns, device), fetch.source.to(t))
        betas = (send(beta, device) for beta in (self.beta1, self.beta2))
        raw = send(self.raw, device)
        return torch.where(raw[:, None], out * _corrections(t, *betas).T, out)

    def on_device(self, device: torch.device) -> DeviceSums:
        """Return the sums as numbers on a device, without waiting for it."""
        rows = np.stack([self.lr, self.wd, self.beta1, self.beta2, self.t])
        constants = send(rows, device)
        for array, columns, fetch in self.late:
            row = next(
                k for k, x in enumerate((self.lr, self.wd, self.beta1, self.beta2, self.t)) if x is array
            )
            constants[row].index_copy_(0, send(columns, device), fetch.source.to(constants))
        found_inf = None if self.found_inf is None else self.found_inf.source
        return DeviceSums(send(self.index, device), self.whole_sums(device), constants, found_inf)

    def ready(self) -> bool:
        """Whether everything has arrived."""
        fetches: list[Arrival] = [f for _, f in self.parts]
        fetches += [f for _, _, f in self.late]
        if self.found_inf is not None:
            fetches.append(self.found_inf)
        return all(fetch.ready() for fetch in fetches)

    def skip_cause(self) -> str | None:
        """Return why to skip this step before looking at its sums (no gradients, infinity found), or None."""
        if len(self.index) == 0:
            return "no_gradients"
        found_inf = self.found_inf is not None and bool(self.found_inf.numpy().any())
        return "found_inf" if found_inf else None

    def put(self, sums: Array, whole: NDArray[np.bool_]) -> None:
        """Replace this rank's sums by those of all ranks.

        Args:
            sums: ``[n_layers, len(Sum)]``.
            whole: ``[n_layers]`` layers of which every rank has measured its shard; others are left out.
        """
        self.sums = sums[self.index].T.copy()
        mine = whole[self.index]
        if not mine.all():
            self._settle()  # late constants arrive in arrays of the full length
            for name in ("index", "lr", "wd", "beta1", "beta2", "t"):
                setattr(self, name, getattr(self, name)[mine])
            self.sums = self.sums[:, mine]

    def _settle(self) -> None:
        """Put constants that arrived late in their places."""
        for array, columns, fetch in self.late:
            array[columns] = fetch.numpy()
        self.late.clear()

    def arrays(self) -> tuple[Array, Array, dict[str, Array]]:
        """Return sums, step counts and constants on the host, adding pieces in a fixed order in float64."""
        self._settle()
        for columns, fetch in self.parts:
            np.add.at(self.sums.T, columns, fetch.numpy())
        self.parts.clear()
        if self.raw is not None:
            t, beta1, beta2 = (torch.from_numpy(x[self.raw]) for x in (self.t, self.beta1, self.beta2))
            self.sums[:, self.raw] *= _corrections(t, beta1, beta2).numpy()
            self.raw = None
        constants = {"lr": self.lr, "wd": self.wd, "beta1": self.beta1, "beta2": self.beta2}
        return self.sums, self.t, constants


@dataclass(frozen=True)
class Averaged:
    """A kernel has counted a step and, if it was measured, averaged its sums into the ledger by itself.

    Attributes:
        measured: whether the step was measured.
        refused: the cause for which no average moved, or None. On a device it stays there: None.
    """

    measured: bool
    refused: str | None = None


Done = PendingSums | DeviceSums | Averaged | str | None
"""What is left to do for a step: sums to average; only counting, as the kernel has averaged; the cause
(:data:`~thermoopt.account.reading.SKIP_CAUSES`) for which it is skipped; None if it was not measured."""


def launch(table: DeviceTable, done: Done) -> bool:
    """Count and average a step on the device; return whether it was measured."""
    if isinstance(done, Averaged):
        return done.measured
    if done != "dry":
        table.count()
    if isinstance(done, str):
        table.skip(done)
    elif isinstance(done, PendingSums) and not len(done.index):
        table.skip("no_gradients")
    elif done is not None:
        table.enter(done.on_device(table.device) if isinstance(done, PendingSums) else done)
        return True
    return False


def _corrections(t: Tensor, beta1: Tensor, beta2: Tensor) -> Tensor:
    """Return factors from sums of raw moments to sums of bias-corrected ones, ``[len(Sum), k]``, float64.

    With raw moments P' = 1 / (sqrt(v) + eps sqrt(1 - beta2**t)) = P / sqrt(1 - beta2**t).
    """
    bc1, bc2 = 1 - beta1**t, 1 - beta2**t
    root = bc2.sqrt()
    out = torch.ones(len(Sum), len(t), dtype=torch.float64, device=t.device)
    out[Sum.A] = out[Sum.TU] = root / bc1
    out[Sum.B] = out[Sum.N1] = root
    out[Sum.UU] = (root / bc1) ** 2
    out[Sum.MU] = root / bc1**2
    out[Sum.SV] = root / bc2
    out[Sum.V] = 1 / bc2
    out[Sum.M2] = 1 / bc1**2
    out[Sum.C] = bc2
    return out


@dataclass
class KeptSums:
    """This rank's sums of a measured step.

    Attributes:
        step: the step and its constants; its sums are those of :attr:`rows`.
        rows: ``[n_layers, _WIDTH]``, float64, on the device where ranks add them up.
    """

    step: PendingSums
    rows: Tensor

    @classmethod
    def of(cls, step: PendingSums, sharding: Sharding) -> KeptSums:
        """Form the rows of a step, without waiting for a device."""
        layers, device = len(sharding.shards), sharding.device
        rows = torch.zeros(layers, _WIDTH, dtype=torch.float64, device=device)
        index = torch.from_numpy(step.index).to(device)
        rows[index, : len(Sum)] = step.whole_sums(device)
        rows[index, _PRESENT] = 1.0
        if step.found_inf is not None:
            rows[:, _FOUND_INF] = step.found_inf.source.to(rows)
        if step.travel is not None:
            rows[:, _TRAVEL:] = step.travel.rows(device)
        step.parts, step.raw, step.found_inf = [], None, None
        return cls(step, rows)


class SharedSteps:
    """Sums of some measured steps on their way through the ranks that share the layers.

    Averages of shards do not add up to those of layers where a column is not linear in the sums
    (:class:`~thermoopt.physics.terms.Linear`: ``WORK2`` is a square, ``MM`` is clamped at 0), and whether a
    step counts is decided by the sums of all ranks. So the sums themselves are sent, those of all steps since
    the last reading in one message, and every rank averages them step by step: the reading is that of whole
    layers. Every rank must begin this after the same steps, whatever it has measured.

    Args:
        kept: the steps, in order.
        sharding: of the layers.
        record: whether a reading is due after the last of them.
    """

    def __init__(self, kept: list[KeptSums], sharding: Sharding, record: bool) -> None:
        self._steps = [k.step for k in kept]
        self._shards = sharding.shards
        self._coming: Arrival = sharding.start(torch.cat([k.rows for k in kept], dim=1))
        self.record = record

    @property
    def step(self) -> int:
        """The last of the steps."""
        return self._steps[-1].step

    @property
    def last(self) -> PendingSums:
        """The account of the last step."""
        return self._steps[-1]

    def ready(self) -> bool:
        """Whether everything has arrived."""
        late = (fetch for step in self._steps for _, _, fetch in step.late)
        return self._coming.ready() and all(fetch.ready() for fetch in late)

    def take(self) -> Iterator[tuple[PendingSums, str | None]]:
        """Give each step with the sums of all ranks, and why it says nothing or None; waits for the ranks.

        A layer that not all of its shards have a gradient of is left out of its step.

        Raises:
            RuntimeError: if the ranks' sums could not be added up.
        """
        try:
            rows = self._coming.numpy()
        except RuntimeError as error:
            steps = f"step {self.step}" if len(self._steps) == 1 else f"steps up to {self.step}"
            raise RuntimeError(
                f"the sums of {steps} could not be added up with those of the other ranks. Probably one of "
                f"them has failed, or has not called step() and state_dict() as this one has: {error}"
            ) from error
        for i, step in enumerate(self._steps):
            own = rows[:, i * _WIDTH : (i + 1) * _WIDTH]
            step.put(own[:, : len(Sum)], own[:, _PRESENT] == self._shards)
            if step.travel is not None:
                step.travel.settle(own[:, _TRAVEL:])
            cause = step.skip_cause()
            if cause is None and own[:, _FOUND_INF].any():
                cause = "found_inf"
            yield step, cause
