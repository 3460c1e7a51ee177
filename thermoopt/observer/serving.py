"""Readings for a controller: each is handed over once, with the sums that the controller needs."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from thermoopt.account import is_measured
from thermoopt.account.reading import Reading
from thermoopt.controllers import Controller
from thermoopt.observer.carried_start import CarriedTravel
from thermoopt.observer.source import Source
from thermoopt.observer.step_hooks import closure_of, is_dry
from thermoopt.observer.whole_steps import on_whole_steps
from thermoopt.physics.travel import Travel
from thermoopt.tensors import capturing

__all__ = ["Serving"]


class Serving:
    """Hands an observer's readings to one controller at a time.

    Args:
        optimizer: the optimizer observed.
        source: its readings.

    Attributes:
        handed: step of the last reading handed over, 0 before the first.
        carried: measures the sums that the controller needs, or None.
    """

    def __init__(self, optimizer: Optimizer, source: Source) -> None:
        self._optimizer, self._source = optimizer, source
        self.handed = 0
        self.carried: CarriedTravel | None = None
        self._every = 1
        self._handle: Any = None

    def begin(self, controller: Controller) -> CarriedTravel | None:
        """Serve this controller from now on; return what measures the sums that it needs."""
        for old in (self._handle, self.carried):
            if old is not None:
                old.remove()
        self._handle = self.carried = None
        self._every = controller.every or 1
        self._source.serve(controller.every)
        if controller.needs:
            self.carried = CarriedTravel(self._optimizer, controller.needs)
            self._handle = self._optimizer.register_step_pre_hook(on_whole_steps(self._before))
        return self.carried

    def close(self) -> None:
        """Measure no more sums."""
        if self._handle is not None:
            self._handle.remove()

    def reading(self) -> tuple[Reading, Travel | None] | None:
        """Return the newest reading that was not handed over yet and the sums of its step, or None."""
        reading = self._source.fresh_reading(self._due)
        if reading is None:
            return None
        self.handed = reading.step
        return reading, None if self.carried is None else self.carried.take(reading.step)

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Measure the sums before a step whose reading may be handed over."""
        if capturing() or (closure_of(args, kwargs) is None and is_dry(optimizer)):
            return None
        step, carried = self._source.steps + 1, self.carried
        due = is_measured(step, self._source.measure_every) and self._due(step)
        return None if carried is None else carried.read(args, kwargs, step if due else None)

    def _due(self, step: int) -> bool:
        """Whether a step's reading is far enough from the last one handed over."""
        return self.handed == 0 or not 0 <= step - self.handed < self._every
