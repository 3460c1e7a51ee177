"""Where an observer's readings come from: a ThermoAdamW's own account, or hooks on any other optimizer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from thermoopt.account import History, reading_lag
from thermoopt.account.reading import Reading
from thermoopt.adamw import ThermoAdamW
from thermoopt.observer.step_hooks import StepHooks
from thermoopt.physics import Standing
from thermoopt.sinks import SinkQueue

__all__ = ["OwnAccount", "Source", "source_of"]


class Source(Protocol):
    """An account of an optimizer's steps, kept by the optimizer itself or by hooks.

    Attributes:
        is_own: whether the optimizer keeps it in its own state.
        begun_at: steps taken before the account began or was loaded; None where the optimizer says it itself.
        sparse: names of layers that had sparse gradients, which are not measured.
    """

    is_own: bool
    begun_at: int | None
    sparse: set[str]

    @property
    def steps(self) -> int:
        """Optimizer steps taken, as :attr:`Reading.step` counts them."""

    @property
    def measure_every(self) -> int:
        """One step in this many is measured."""

    @property
    def record_every(self) -> int:
        """Least number of steps between readings that go to history, sinks and controller."""

    @property
    def ema_steps(self) -> float:
        """Length of the readings' average in optimizer steps."""

    @property
    def reading(self) -> Reading | None:
        """The last completed reading, or None before the first. Waits for everything in flight."""

    def newest_reading(self) -> Reading | None:
        """Return the last reading that has arrived, without waiting."""

    @property
    def history(self) -> History:
        """The bounded record of readings."""

    @property
    def skipped(self) -> dict[str, int]:
        """Measured steps that moved nothing, by cause."""

    @property
    def sinks(self) -> SinkQueue:
        """Where recorded readings go."""

    @property
    def kept_names(self) -> dict[Tensor, str]:
        """Layer names by tensor after groups were edited by hand."""

    def follow_groups(self) -> None:
        """Follow edits of the optimizer's groups; a measured step begins with it."""

    def serve(self, every: int | None) -> None:
        """Make :meth:`fresh_reading` return readings for a controller, ``every`` steps or more apart."""

    def fresh_reading(self, is_due: Callable[[int], bool]) -> Reading | None:
        """Return the newest reading for a controller, or None.

        Args:
            is_due: whether a step's reading is far enough from the last one handed over.
        """

    def report_loss(self, loss: object) -> None:
        """Let records have the loss of the step just taken, where readings come without."""

    def stand(self, step: int, standings: Collection[Standing], actions: Sequence[Any]) -> None:
        """Keep what a controller made of a reading (:meth:`thermoopt.account.LedgerView.stand`)."""

    def close(self) -> None:
        """Stop measuring. What was read stays."""

    def state_dict(self) -> dict[str, Any]:
        """Return averages and counters, unless the optimizer keeps them itself."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""


class OwnAccount:
    """The account that a ThermoAdamW keeps of itself.

    Args:
        optimizer: the ThermoAdamW.
    """

    is_own = True
    begun_at: int | None = None

    def __init__(self, optimizer: ThermoAdamW) -> None:
        self._optimizer = optimizer
        self.sparse: set[str] = set()  # AdamW takes none
        self._sinks = optimizer.sinks  # to ask for them waits for the device

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        return self._optimizer.steps

    @property
    def measure_every(self) -> int:
        """One step in this many is measured."""
        return self._optimizer.measure_every

    @property
    def record_every(self) -> int:
        """Least number of steps between recorded readings."""
        return self._optimizer.record_every

    @property
    def ema_steps(self) -> float:
        """Length of the readings' average in optimizer steps."""
        return self._optimizer.ema_steps

    @property
    def reading(self) -> Reading | None:
        """The last completed reading."""
        return self._optimizer.reading

    def newest_reading(self) -> Reading | None:
        """Return the last reading that has arrived."""
        return self._optimizer.newest_reading()

    @property
    def history(self) -> History:
        """The bounded record of readings."""
        return self._optimizer.history

    @property
    def skipped(self) -> dict[str, int]:
        """Measured steps that moved nothing, by cause."""
        return self._optimizer.skipped

    @property
    def sinks(self) -> SinkQueue:
        """Where recorded readings go."""
        return self._sinks

    @property
    def kept_names(self) -> dict[Tensor, str]:
        """Layer names after groups were edited."""
        return self._optimizer.kept_names

    def follow_groups(self) -> None:
        """Make the optimizer follow edits of its groups."""
        self._optimizer.follow_groups()

    def serve(self, every: int | None) -> None:
        """Do nothing: the optimizer decides by itself when to measure and record."""

    def fresh_reading(self, is_due: Callable[[int], bool]) -> Reading | None:
        """Return the newest reading, or from a device the last recorded one that is a step old, if it is due.

        On CPU it is waited for: sums of sharded layers may be in flight.
        """
        lag = reading_lag([p for group in self._optimizer.param_groups for p in group["params"]])
        reading = self._optimizer.late_reading(lag) if lag else self._optimizer.reading
        return reading if reading is not None and is_due(reading.step) else None

    def report_loss(self, loss: object) -> None:
        """Let the optimizer's records have the loss of the step just taken."""
        self._sinks.report_loss(self._optimizer.steps, loss)

    def stand(self, step: int, standings: Collection[Standing], actions: Sequence[Any]) -> None:
        """Keep what a controller made of a reading."""
        self._optimizer.stand(step, standings, actions)

    def close(self) -> None:
        """Do nothing: the optimizer goes on."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the optimizer's state holds it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: the optimizer's state holds it."""


def source_of(
    optimizer: Optimizer,
    names: Mapping[Tensor, str],
    measure_every: int,
    ema_steps: float,
    sinks: SinkQueue,
    complete: Callable[[Reading], Reading],
) -> Source:
    """Return the account to read: a ThermoAdamW's own, else :class:`StepHooks` with these arguments.

    Raises:
        ValueError: for sinks together with a ThermoAdamW; nothing is hooked then.
    """
    if not isinstance(optimizer, ThermoAdamW):
        return StepHooks(optimizer, names, measure_every, ema_steps, sinks, complete)
    if sinks:
        raise ValueError(f"sinks must be () with a ThermoAdamW, which takes them itself, got {sinks!r}")
    return OwnAccount(optimizer)
