"""What a diagnosis is based on: the record of a run as arrays, and the few statistics that all kinds use."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from thermoopt.account import ROWS_PER_EMA, HistoryLike, running_mean
from thermoopt.account.reading import Reading
from thermoopt.physics import LR

__all__ = ["MIN_READINGS", "Evidence", "LossRecord", "Run", "mean_interval", "missing_members"]

Array = NDArray[np.float64]

MIN_READINGS = 10
"""Fewest readings for any statistical statement: two averaging times, at the five readings per averaging time
that a run records."""


class LossRecord(Protocol):
    """Losses that were reported."""

    @property
    def steps(self) -> NDArray[Any]:
        """Steps, ``[n]``."""

    @property
    def values(self) -> NDArray[Any]:
        """Losses, ``[n]``."""


class Run(Protocol):
    """What :func:`thermoopt.diagnose` takes: an :class:`~thermoopt.Observer`, or a run that was saved."""

    @property
    def history(self) -> HistoryLike:
        """The readings."""

    @property
    def reading(self) -> Reading | None:
        """The newest reading in full; None before the first, and for a record that holds only quantities."""

    @property
    def losses(self) -> LossRecord:
        """The losses that were reported, perhaps none."""

    @property
    def skipped(self) -> Mapping[str, int]:
        """Number of steps that were due to be measured but entered no average, by cause."""

    @property
    def layer_types(self) -> Mapping[str, str]:
        """Type of each layer by name."""

    @property
    def start_norms(self) -> Mapping[str, float]:
        """Squared norm of each layer at the start."""

    @property
    def matrices(self) -> Collection[str]:
        """Layers of two or more dimensions."""

    @property
    def frozen(self) -> Collection[str]:
        """Layers that are not trained."""

    @property
    def bad_losses(self) -> int:
        """Number of reported losses that were not finite."""

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""


def missing_members(run: object) -> list[str]:
    """Return the names of :class:`Run` that an object lacks."""
    names = [name for name, member in vars(Run).items() if isinstance(member, property)]
    return [name for name in names if not hasattr(run, name)]


class Evidence:
    """The record of a run.

    Args:
        run: the run.
        ended: whether it is known to take no further step.

    Attributes:
        ended: likewise, also where its record says so.
        length: step at which its learning rate has been cooled; None where nothing cools it, or nobody knows.
        n: number of readings.
        steps: ``[n]`` their steps.
        late: ``[n]`` mask of the readings in the second half.
        layer_steps, layer_spans: ``[m]`` steps of the layers' readings, and how many each stands for.
        keep: factor by which an average forgets in a step, NaN where it is not known.
        rate_kind: what ``lr_eff`` is (:data:`thermoopt.physics.LR`); lr where that is not known.
        names: layer names; columns of every ``[m, n_layers]`` array.
        matrix: ``[n_layers]`` mask of layers of two or more dimensions that did not start at zero.
        start: ``[n_layers]`` norms at the start.
    """

    def __init__(self, run: Run, ended: bool = False) -> None:
        self._history = run.history
        self._types = run.layer_types
        self.taken = run.steps
        self.ended = ended or bool(getattr(run, "ended", False))
        self.length: int | None = getattr(run, "length", None)
        self.skipped = dict(run.skipped)
        self.bad_losses = run.bad_losses
        self.frozen = frozenset(run.frozen) | frozenset(getattr(run, "sparse", ()))
        ema_steps = getattr(run, "ema_steps", None)  # a record on file does not say it
        self.keep = math.nan if ema_steps is None else 1 - 1 / ema_steps
        self.rate_kind = getattr(run, "rate_kind", LR)
        self.steps = np.asarray(run.history.steps)
        self.n = len(self.steps)
        self.late = np.arange(self.n) >= self.n // 2
        self.layer_steps = np.asarray(run.history.layer_steps)
        self.layer_spans = np.diff(self.layer_steps, prepend=0)
        self.names = list(run.history.layer_names)
        self.start = np.array([math.sqrt(run.start_norms.get(name, math.nan)) for name in self.names])
        matrices = frozenset(run.matrices)
        self.matrix = np.array([name in matrices for name in self.names], dtype=bool) & (self.start > 0)
        self.loss_steps, self.loss = np.asarray(run.losses.steps), np.asarray(run.losses.values, dtype=float)
        self._totals: dict[str, Array] = {}
        self._layers: dict[str, Array] = {}

    def total(self, name: str) -> Array:
        """Return a quantity of all parameters together, ``[n]``."""
        if name not in self._totals:
            self._totals[name] = np.asarray(self._history.total(name), dtype=float)
        return self._totals[name]

    def layers(self, name: str) -> Array:
        """Return a quantity of every layer, ``[m, n_layers]``."""
        if name not in self._layers:
            self._layers[name] = np.asarray(self._history.layers(name), dtype=float)
        return self._layers[name]

    @property
    def enough(self) -> bool:
        """Whether there are enough readings for statistics."""
        return self.n >= MIN_READINGS

    def late_median(self, name: str) -> float:
        """Median of a total over the second half of the readings, NaN where it is unavailable."""
        return median(self.total(name)[self.late])

    def late_interval(self, name: str) -> tuple[float, float]:
        """Mean of a total over the second half of the readings, plus and minus two standard errors."""
        return mean_interval(self.total(name)[self.late])

    @property
    def layers_late(self) -> NDArray[np.bool_]:
        """Mask of the layers' readings in the second half, ``[m]``."""
        return np.arange(len(self.layer_steps)) >= len(self.layer_steps) // 2

    def layer_medians(self, name: str) -> Array:
        """Median of each layer over the second half of its readings, ``[n_layers]``."""
        rows = self.layers(name)[self.layers_late]
        return np.array([median(column) for column in rows.T])

    @property
    def peak_lr(self) -> float:
        """Largest mean learning rate among the readings."""
        return float(np.nanmax(self.total("lr_eff"), initial=0.0))

    def relative_rate(self) -> float:
        r"""Peak size of a step over that of the weights at the start, of the median matrix.

        With Adam's moments an element moves by up to lr a step: lr over the rms. Without, lr is in units of
        the optimizer's own: what was moved, :math:`\|\theta'-\theta\|/\|\theta_0\|`.
        """
        if not len(self.layer_steps):  # a record without layers
            return math.nan
        lr = self.layers("lr_eff")
        with np.errstate(all="ignore"):
            rms = self.start / np.sqrt(self.layers("numel")[-1])  # 0/0 of a layer without elements
            moved = self.layers("angular_step") * self.layers("param_norm")
            by_moments = np.isfinite(self.layers("gaussianity")).any(axis=0)
            rates = np.where(
                by_moments, np.fmax.reduce(lr, axis=0) / rms, np.fmax.reduce(moved, axis=0) / self.start
            )
            return median(rates[self.matrix])

    @property
    def finite_loss(self) -> Array:
        """The reported losses that are finite, oldest first."""
        return self.loss[np.isfinite(self.loss)]

    def loss_ratios(self) -> tuple[float, float]:
        """Highest running mean of ten losses and mean of the last quarter, both over the first loss.

        If losses were reported from the start, the first one precedes the first step. NaN if there are too
        few losses or the first is not positive.
        """
        finite = self.finite_loss
        if len(finite) < 2 * MIN_READINGS or finite[0] <= 0:
            return math.nan, math.nan
        first = finite[0]
        return running_mean(finite, 10).max() / first, last_quarter(finite).mean() / first

    def keeps_gain(self, most: float) -> bool:
        """Whether the loss fell to a share ``most`` of the first one and kept half of that gain."""
        finite = self.finite_loss
        if len(finite) < 2 * MIN_READINGS or finite[0] <= 0 or self.bad_losses:
            return False
        mean = running_mean(finite, MIN_READINGS) / finite[0]
        return bool(mean.min() <= most and mean[-1] <= (1 + mean.min()) / 2)

    def select(self, mask: NDArray[np.bool_]) -> tuple[str, ...]:
        """Names of the layers that a mask ``[n_layers]`` selects."""
        return tuple(name for name, take in zip(self.names, mask, strict=True) if take)

    def type_of(self, layers: Sequence[str]) -> str | None:
        """Type shared by all the given layers, or None."""
        types = Counter(self._types.get(name, "other") for name in layers)
        return next(iter(types)) if len(types) == 1 else None


def last_quarter(x: Array) -> Array:
    """The last quarter of at least four values."""
    return x[-(len(x) // 4) :]


def median(x: Array) -> float:
    """Median of the finite values, NaN if there are none."""
    x = x[np.isfinite(x)]
    return float(np.median(x)) if len(x) else math.nan


def mean_interval(x: Array) -> tuple[float, float]:
    """Mean of readings, plus and minus two standard errors.

    There are five readings per averaging time, so neighbours share most of their steps: n readings count as
    n/5 independent ones.
    """
    x = x[np.isfinite(x)]
    if len(x) < 2:
        return math.nan, math.nan
    error = 2 * float(x.std(ddof=1)) / math.sqrt(max(1.0, len(x) / ROWS_PER_EMA))
    return float(x.mean()) - error, float(x.mean()) + error
