"""Averages of sums over steps, and the reading formed from them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.account.reading import SKIP_CAUSES, Reading
from thermoopt.physics import COLUMNS, columns_of, layer_terms, linear_sums
from thermoopt.physics.sums import Sum

__all__ = ["STATE_ROWS", "Meter", "RunState", "is_measured", "measured_steps"]

Array = NDArray[np.float64]


_COUNTERS = ("step", "readings", "recorded", "unseen")
_RUN_ROWS = ("weight", "weight2", "last", "lr", "wd", "beta2")
STATE_ROWS = COLUMNS + len(_RUN_ROWS)
"""Rows of the tensor ``[STATE_ROWS, n]`` that a meter keeps for the ``n`` layers of a group."""


GOLDEN = (math.sqrt(5) - 1) / 2
"""Of all numbers the one that fractions approximate worst: what it spaces falls most evenly."""


def measured_steps(step: int, every: int) -> int:
    r"""Return how many of the first ``step`` steps are measured, one in ``every`` or a little less.

    .. math:: k(t) = \lfloor (t + 2\varphi) / (n + \varphi) \rfloor,\qquad \varphi = (\sqrt5 - 1)/2

    Measured steps lie n or n + 1 steps apart, 10, 20, 31, 42, 52, ... for n = 10. At a fixed distance, a loop
    whose steps take turns (two tasks, batches in the same order in each epoch) would always be measured in
    the same phases if its period had a factor in common with n. Multiples of an irrational number meet all
    phases of any period equally often. The step number alone decides: ranks and resumed runs measure the
    same steps.

    Args:
        step: number of steps, >= 0.
        every: n >= 1; 1 is every step.

    References:
        Weyl, Math. Ann. 77 (1916): multiples of an irrational number are equidistributed modulo any other.
    """
    return step if every == 1 else int((step + 2 * GOLDEN) / (every + GOLDEN))


def is_measured(step: int, every: int) -> bool:
    """Whether a step, counted from 1, is one of those that :func:`measured_steps` counts."""
    return measured_steps(step, every) > measured_steps(step - 1, every)


@dataclass
class RunState:
    """Counters of a run.

    Attributes:
        step: optimizer steps taken.
        readings: steps averaged in.
        recorded: step of the last reading that went to history, sinks and controller.
        unseen: 1 as long as the controller has not seen that reading.
        skipped: measured steps that moved nothing, by cause.
    """

    step: int = 0
    readings: int = 0
    recorded: int = 0
    unseen: int = 0
    skipped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SKIP_CAUSES, 0))


class Meter:
    r"""Exponential averages of the sums of each layer.

    A sum x measured :math:`\Delta` steps after the last one enters as
    :math:`X \leftarrow qX + (1-q)x` with :math:`q = (1-1/\mathrm{ema\_steps})^\Delta`; a weight
    started at 0 goes the same way and divides it (no bias at the start, nothing undefined in between).
    ``ema_steps=1`` gives the raw step. A layer without a gradient keeps its averages, but is left out of
    readings (not ``seen``) once it has had none for longer than ``ema_steps``: they are out of date.

    Args:
        ema_steps: length of the average, in optimizer steps, at least 1.
        unavailable: sums that an optimizer without Adam's moments does not have. Values given for them
            are ignored, and every quantity that needs one of them is NaN in the reading.
    """

    def __init__(self, ema_steps: float, unavailable: Collection[Sum] = ()) -> None:
        self.keep = 1 - 1 / ema_steps
        self.memory = ema_steps
        self._missing = columns_of(unavailable) if unavailable else None
        self.run = RunState()
        self.names: tuple[str, ...] = ()
        self.group_names: tuple[str, ...] = ()
        self.group_of = np.zeros(0, dtype=np.int64)
        self.numel = np.zeros(0)
        self._state = np.zeros((STATE_ROWS, 0))
        self._latest: Reading | None = None
        self._everything: NDArray[np.int64] | None = None

    def add_group(self, name: str, layers: Sequence[str], numel: Sequence[int]) -> None:
        """Add the layers of one more parameter group.

        The group's index is appended to a name that is taken, and to ``"total"``, which records use for the
        sum over groups.
        """
        while name == "total" or name in self.group_names:
            name = f"{name}.{len(self.group_names)}"
        self.group_of = np.append(self.group_of, np.full(len(layers), len(self.group_names)))
        self.group_names += (name,)
        self.names += tuple(layers)
        self.numel = np.append(self.numel, np.asarray(numel, dtype=np.float64))
        self._state = np.append(self._state, np.zeros((STATE_ROWS, len(layers))), axis=1)
        self._latest = self._everything = None

    def forget_layers(self) -> None:
        """Drop all layers; the run's counters stay."""
        self.names = self.group_names = ()
        self.group_of, self.numel = np.zeros(0, dtype=np.int64), np.zeros(0)
        self._state = np.zeros((STATE_ROWS, 0))
        self._latest = self._everything = None

    def put_layers(self, averages: Array, before: Sequence[int | None]) -> None:
        """Take over averages: those of layer i are column ``before[i]``, or start afresh if that is None."""
        for i, column in enumerate(before):
            if column is not None:
                self._state[:, i] = averages[:, column]
        if not self._state[COLUMNS].any():
            self.run.readings = 0
        self._latest = None

    def skip(self, cause: str) -> None:
        """Count a measured step that moves no average."""
        self.run.skipped[cause] += 1
        self._latest = None

    def update(
        self, step: int, index: NDArray[np.int64], sums: Array, t: Array, constants: Mapping[str, Array]
    ) -> str | None:
        """Average in the sums of a step, or none of them if one is not finite.

        Args:
            step: the optimizer step measured.
            index: ``[k]`` layers measured, in any order.
            sums: ``[len(Sum), k]``.
            t: ``[k]`` the layers' own step counts.
            constants: ``lr``, ``wd``, ``beta1``, ``beta2``, each ``[k]``, as applied in the step.

        Returns:
            None, or the cause for which no average moved (:data:`SKIP_CAUSES`); it is not counted here.
        """
        if not np.isfinite(sums).all():
            return "nonfinite"
        if not constants["lr"].any() and not sums[Sum.GG].any():
            return "dry"
        # a kernel passes the same index array at every step
        everything = index is self._everything or np.array_equal(index, np.arange(len(self.names)))
        if everything:
            self._everything = index
        state = self._state if everything else self._state[:, index]
        weight, weight2, last, lr, wd, beta2 = state[COLUMNS:]
        q = self.keep ** (step - last)
        p = 1 - q
        state[:COLUMNS] *= q
        new = linear_sums(sums, constants["beta1"], t)
        if self._missing is not None:
            new[self._missing] = 0.0  # state stays free of NaN
        state[:COLUMNS] += p * new
        weight *= q
        weight += p
        weight2 *= q**2
        weight2 += p**2
        last[:] = step
        lr[:], wd[:], beta2[:] = constants["lr"], constants["wd"], constants["beta2"]
        if not everything:
            self._state[:, index] = state
        self.run.readings += 1
        self._latest = None
        return None

    @property
    def reading(self) -> Reading | None:
        """The reading of the last measured step; None before the first."""
        if self.run.readings == 0:
            return None
        if self._latest is None:
            self.form([self])
        return self._latest

    @staticmethod
    def form(meters: Sequence[Meter]) -> None:
        """Form the readings of some of a run's meters in one go.

        One by one, small networks pay for the calls of numpy and not for the numbers.

        Args:
            meters: with the same layers; each has measured.
        """
        first = meters[0]
        state = np.stack([meter._state for meter in meters], axis=1)  # [STATE_ROWS, meters, layers]
        weight, weight2, last, lr, wd, beta2 = state[COLUMNS:]
        newest = last.max(axis=1)
        seen = (weight > 0) & (newest[:, None] - last <= first.memory)
        safe = np.where(seen, weight, 1.0)
        mean, error2 = state[:COLUMNS] / safe, weight2 / safe**2
        if first._missing is not None:
            mean[first._missing] = np.nan
        terms = np.where(seen, layer_terms(mean, error2, lr, wd, beta2, first.numel), 0.0)
        for i, (meter, step) in enumerate(zip(meters, newest.tolist(), strict=True)):
            meter._latest = Reading(
                step=int(step),
                names=meter.names,
                terms=terms[:, i],
                group_of=meter.group_of,
                group_names=meter.group_names,
                seen=seen[i],
                skipped=dict(meter.run.skipped),
            )

    def has_layers_of(self, other: Meter) -> bool:
        """Whether no layer was added or dropped between two meters of a run."""
        return self.names is other.names and self.numel is other.numel and self._missing is other._missing

    def snapshot(self) -> Meter:
        """Return a copy that later steps do not change."""
        out = copy(self)
        out._state, out.run = self._state.copy(), replace(self.run, skipped=dict(self.run.skipped))
        return out

    def took(self) -> None:
        """Count a step that a kernel averaged into :attr:`state` by itself."""
        self.run.readings += 1
        self._latest = None

    @property
    def state(self) -> Array:
        """The averages, ``[STATE_ROWS, n_layers]``: the same array until a group is added."""
        return self._state

    def pack(self) -> tuple[Array, Array, NDArray[np.bool_] | None]:
        """Return averages, counters in a device's layout, and which columns are not available.

        Counters, ``[8]``: step, readings, last step averaged in, skipped steps by cause, :attr:`keep`.
        """
        last = self._state[COLUMNS + 2].max(initial=0.0)
        skipped = [self.run.skipped[cause] for cause in SKIP_CAUSES]
        run = np.array([self.run.step, self.run.readings, last, *skipped, self.keep], dtype=np.float64)
        return self._state, run, self._missing

    def unpack(self, state: Array, run: Array) -> None:
        """Take over averages and counters from a device; the caller counts the step."""
        self._state[:] = state
        self.run.readings = int(run[1])
        for cause, n in zip(SKIP_CAUSES, run[3:], strict=False):
            self.run.skipped[cause] = int(n)
        self._latest = None

    def export_group(self, group: int) -> dict[str, int | Tensor]:
        """Return all that is needed to go on: plain ints and one float64 tensor ``[STATE_ROWS, n]``."""
        counts: dict[str, int | Tensor] = {f"skipped_{c}": n for c, n in self.run.skipped.items()}
        rows = torch.from_numpy(self._state[:, self.group_of == group].copy())
        run = {key: getattr(self.run, key) for key in _COUNTERS}
        return {**run, "meter": rows, **counts}

    def import_group(self, group: int, saved: Mapping[str, object]) -> None:
        """Restore what :meth:`export_group` returned.

        Averages may also be nested lists. If an older checkpoint lacks them, or has them in another layout
        (which is warned about), they start afresh. Counters belong to the run, so the largest of all groups
        counts: a group added in mid-run has seen fewer steps.
        """
        self._latest = None
        rows = saved.get("meter")
        where = self.group_of == group
        if isinstance(rows, (Tensor, list)):
            rows = torch.as_tensor(rows, dtype=torch.float64, device="cpu")
            expected = (STATE_ROWS, int(where.sum()))
            if tuple(rows.shape) == expected:
                self._state[:, where] = rows.cpu().numpy()
            else:
                warnings.warn(
                    f"saved averages of group {group} have shape {tuple(rows.shape)}, not {expected}: "
                    "they start afresh",
                    RuntimeWarning,
                    stacklevel=2,
                )
        for key in _COUNTERS:
            setattr(self.run, key, max(getattr(self.run, key), _count(saved, key)))
        for cause in self.run.skipped:
            self.run.skipped[cause] = max(self.run.skipped[cause], _count(saved, f"skipped_{cause}"))


def _count(saved: Mapping[str, object], key: str) -> int:
    value: Any = saved.get(key, 0)
    return int(value.item() if isinstance(value, Tensor) else value)
