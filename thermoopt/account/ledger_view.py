"""What a class that keeps a ledger shows of it to users."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol
from weakref import WeakMethod

from torch import Tensor

from thermoopt.account.history import History
from thermoopt.account.ledger import Ledger
from thermoopt.account.reading import Reading
from thermoopt.physics import Standing

__all__ = ["LedgerView", "if_alive"]


class _Records(Protocol):
    def stand(self, step: int, standings: Collection[Standing], actions: Sequence[Any]) -> None: ...


class LedgerView:
    """Readings, history and counters of a class that keeps a ``_ledger`` and ``_sinks``."""

    _ledger: Ledger
    _sinks: _Records

    @property
    def reading(self) -> Reading | None:
        """The last completed reading, or None before the first. Waits for sums still on a device."""
        return self._ledger.reading

    @property
    def kept_names(self) -> dict[Tensor, str]:
        """Layer names by tensor after groups were edited by hand: names do not change."""
        return self._ledger.kept_names

    def newest_reading(self) -> Reading | None:
        """Return the last reading whose sums have arrived: like :attr:`reading`, but without waiting."""
        return self._ledger.newest_reading()

    def late_reading(self, lag: int) -> Reading | None:
        """Return the last recorded reading that is ``lag`` steps old or older, waiting for it if need be.

        Ranks that call it after the same step get the same one, whenever their sums arrive.
        """
        return self._ledger.late_reading(lag)

    @property
    def steps(self) -> int:
        """Optimizer steps taken, as :attr:`Reading.step` counts them."""
        return self._ledger.steps

    @property
    def record_every(self) -> int:
        """Least number of steps between readings that go to history, sinks and controller."""
        return self._ledger.record_every

    @property
    def ema_steps(self) -> float:
        """Length of the readings' average in optimizer steps."""
        return self._ledger.ema_steps

    @property
    def history(self) -> History:
        """The bounded record of readings."""
        return self._ledger.history

    @property
    def skipped(self) -> dict[str, int]:
        """Measured steps that moved nothing, by cause (:data:`thermoopt.account.reading.SKIP_CAUSES`)."""
        return self._ledger.skipped

    def stand(self, step: int, standings: Collection[Standing], actions: Sequence[Any]) -> None:
        """Keep, in history and records, what a controller made of a reading.

        Args:
            step: of the reading.
            standings: where each of its rates stands (:attr:`Controller.standing`).
            actions: all its actions so far, oldest first; the records take those that are new.
        """
        self._ledger.put_standings(standings)
        self._sinks.stand(step, standings, actions)


def if_alive(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls a bound method as long as its object lives, and then does nothing.

    A part that held the method itself would make a circle. A dropped optimizer would then keep its model's
    memory until the garbage collector runs, where torch's frees it at once.

    Args:
        method: a bound method that returns nothing.
    """
    ref = WeakMethod(method)

    def call(*args: Any) -> None:
        bound = ref()
        if bound is not None:
            bound(*args)

    return call
