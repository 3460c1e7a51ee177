"""The ledger of a run: sums under way, their averages, and the readings that were recorded."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from thermoopt.account import pending
from thermoopt.account.device_table import DeviceTable, FetchedTable, reading_lag
from thermoopt.account.history import ROWS_PER_EMA, History
from thermoopt.account.meter import Meter, RunState
from thermoopt.account.naming import add_to_meter
from thermoopt.account.pending import MAX_PENDING, Averaged, Done, KeptSums, PendingSums, SharedSteps
from thermoopt.account.reading import LastReadings, Reading, ReadingSink
from thermoopt.kernels import CAUSES
from thermoopt.physics import Standing
from thermoopt.physics.sums import Sum
from thermoopt.tensors import WARM_UP, PendingTravel, Sharding, capturing

__all__ = ["Ledger"]


class Ledger:
    """What the steps of an optimizer did, from the sums of a step to recorded readings.

    Averages are kept on the host (:class:`~thermoopt.account.meter.Meter`) or beside the tensors
    (:class:`~thermoopt.account.device_table.DeviceTable`), from where they are fetched when a reading is
    recorded or requested.

    Args:
        ema_steps: length of the average in steps.
        sinks: gets every recorded reading; None keeps them here.
        record_every: least number of steps between two recorded readings; None is a fifth of ``ema_steps``.
        history: a history to continue; None begins one.
        unavailable: sums that the optimizer does not have (:class:`~thermoopt.account.meter.Meter`).
        complete: adds to a reading, before it is recorded, what its sums do not contain.
        on_record: called with every recorded reading and the travel of its step.
        on_unbegun: called when the only step so far turned out to be a checkpoint library's dry step.
        on_missed: called with the number of replays of a captured step that were not announced.

    Attributes:
        meter: averages and counters on the host.
        table: those on the device, or None.
        record_every: as above.
        kept_names: names of layers of groups that were edited by hand.
        lag: number of steps by which readings are handed over late (:func:`reading_lag`).
    """

    def __init__(
        self,
        ema_steps: float,
        sinks: ReadingSink | None = None,
        *,
        record_every: int | None = None,
        history: History | None = None,
        unavailable: Collection[Sum] = (),
        complete: Callable[[Reading], Reading] | None = None,
        on_record: Callable[[Reading, PendingTravel | None], None] | None = None,
        on_unbegun: Callable[[], None] | None = None,
        on_missed: Callable[[int], None] | None = None,
    ) -> None:
        self.ema_steps = ema_steps
        self.record_every = record_every or math.ceil(ema_steps / ROWS_PER_EMA)
        self._sinks = sinks
        self._history = History() if history is None else history
        self.kept_names: dict[Tensor, str] = {}
        self._complete, self._on_record, self._on_unbegun = complete, on_record, on_unbegun
        self._on_missed = on_missed
        self.reset(unavailable)

    def reset(self, unavailable: Collection[Sum] = ()) -> None:
        """Start over without layers and steps; history and sinks stay."""
        self.meter = Meter(self.ema_steps, unavailable)
        self.table: DeviceTable | None = None
        self._sharding: Sharding | None = None
        self._queue: deque[PendingSums | FetchedTable | SharedSteps] = deque()
        self._kept: list[KeptSums] = []  # of sharded layers, not yet added up with those of other ranks
        self._last = LastReadings(MAX_PENDING)
        self.lag = self._asked = 0  # the last step to be recorded that a device or ranks were asked for
        self._stale = self._replayed = False
        self._expected: Callable[[], PendingTravel | None] | None = None

    def add_group(self, group: Mapping[str, Any], names: Mapping[Tensor, str] | None = None) -> None:
        """Add the layers of one more parameter group (:func:`~thermoopt.account.add_to_meter`)."""
        self.to_host()
        add_to_meter(self.meter, group, names, self.kept_names)

    def forget_layers(self) -> None:
        """Drop all layers and their readings; the run goes on."""
        self.meter.forget_layers()
        self._last.clear()
        self.meter.run.unseen, self._asked = 0, self.meter.run.recorded

    def follow(self, params: Sequence[Tensor]) -> None:
        """Set the layers' tensors, which decide how late readings are and which ranks share them."""
        self._share(record=False)
        self.lag = reading_lag(params)
        self._sharding = Sharding(params)

    @property
    def sharding(self) -> Sharding:
        """The ranks that the sums of each layer come from."""
        assert self._sharding is not None
        return self._sharding

    def keep_on(self, device: torch.device | None) -> None:
        """Keep averages on a device from now on, or on the host (None).

        Raises:
            RuntimeError: if they would have to move while a CUDA graph is being captured.
        """
        if (None if self.table is None else self.table.device) == device:
            return
        if capturing():
            raise RuntimeError(WARM_UP)
        self.to_host()
        if device is not None:
            self.table = DeviceTable(self.meter, device)

    def to_host(self) -> None:
        """Bring averages to the host, waiting for everything in flight. All ranks must call it."""
        self._share(record=False)
        self.settle()
        self.table = None

    @property
    def run(self) -> RunState:
        """The run's counters on the host."""
        return self.meter.run

    @property
    def steps(self) -> int:
        """Number of steps taken. After a capture it waits for the device, which counts the replays."""
        if self._replayed:
            self.settle()
        return self.meter.run.step

    def is_record_due(self, step: int) -> bool:
        """Whether a step's reading is far enough from the last one recorded."""
        last = max(self.meter.run.recorded, self._asked)
        return last == 0 or step - last >= self.record_every

    def enter(self, done: Done, travel: PendingTravel | None = None, *, maybe_dry: bool = False) -> None:
        """Count a step and enter what is left of it.

        Args:
            done: see :data:`Done`. A step known to be dry is not counted.
            travel: the sums that a controller needs, of the same step.
            maybe_dry: every lr is 0: a checkpoint library may have taken the step.
        """
        if self.table is not None and capturing():
            self._replayed = True
            pending.launch(self.table, done)
            return
        run = self.meter.run
        run.step += done != "dry"
        if self.table is not None and isinstance(done, str) and done not in CAUSES:
            self.meter.skip(done)  # a cause that only the host knows
            done = None
        if self.table is not None:
            self._stale = True
            measured = pending.launch(self.table, done)
            due = self.is_record_due(run.step)
            if measured and (due or maybe_dry):
                self._ask(due, travel)
            self.collect()
        elif isinstance(done, Averaged):
            if done.measured:
                if done.refused is None:
                    self.meter.took()
                self._book(done.refused, run.step, travel)
        elif isinstance(done, str):
            self.meter.skip(done)
        elif isinstance(done, PendingSums):
            done.step, done.travel = run.step, travel
            if self._sharding:  # kept until a reading is due, which is after the same step on all ranks
                self._kept.append(KeptSums.of(done, self._sharding))
                due = self.is_record_due(done.step)
                if due or maybe_dry or len(self._kept) >= pending.MAX_KEPT:
                    self._share(record=due)
            else:
                self._queue.append(done)
            self.collect(wait=maybe_dry and bool(self._sharding))  # was it a step? the next one's number

    def _share(self, record: bool) -> None:
        """Start adding up the steps kept with those of the other ranks, all of which must do so now."""
        if self._kept:
            self._queue.append(SharedSteps(self._kept, self.sharding, record))
            self._asked = self._kept[-1].step.step if record else self._asked
            self._kept = []

    @property
    def replays(self) -> bool:
        """Whether a step was captured in a CUDA graph, which may be replayed."""
        return self._replayed

    def expect_replay(self, travel: Callable[[], PendingTravel | None]) -> None:
        """Announce a replay of a captured step.

        Args:
            travel: called after the replay if its reading is due; returns the sums that a controller needs.
        """
        self._expected = travel

    def _book_replay(self) -> None:
        """Count the announced replay, and request its reading if that is due."""
        if self._expected is None:
            return
        travel, self._expected = self._expected, None
        self.meter.run.step += 1
        if self.is_record_due(self.meter.run.step):
            self._ask(True, travel())

    def begin(self) -> None:
        """Enter what has arrived, before a step."""
        self._book_replay()
        self.collect()

    def _ask(self, record: bool, travel: PendingTravel | None) -> None:
        """Request the averages of the step just taken."""
        assert self.table is not None
        step = self.meter.run.step
        self._queue.append(FetchedTable(step, self.table.fetch(), record, travel))
        if record:
            self._asked = step

    def collect(self, wait: bool = False) -> None:
        """Enter what has arrived; with ``wait``, or beyond :data:`MAX_PENDING`, also what is in flight."""
        while self._queue and (wait or self._queue[0].ready() or len(self._queue) > MAX_PENDING):
            self._arrive()

    def collect_before(self, step: int) -> None:
        """Enter all steps before this one, waiting for them."""
        while self._queue and self._queue[0].step < step:
            self._arrive()

    def settle(self) -> None:
        """Bring the host up to the last step, waiting for everything in flight."""
        self.collect(wait=True)
        if self._expected is not None and self.table is not None and self.table.steps > self.meter.run.step:
            self._book_replay()
            self.collect(wait=True)
        if self.table is not None and (self._stale or self._replayed):
            self._ask(False, None)
            self.collect(wait=True)

    def _arrive(self) -> None:
        came = self._queue.popleft()
        if isinstance(came, FetchedTable):
            self._take_fetched(came)
        elif isinstance(came, SharedSteps):
            self._take_shared(came)
        else:
            self._book(self._average(came, came.skip_cause()), came.step, came.travel)

    def _average(self, came: PendingSums, cause: str | None) -> str | None:
        """Average a step in unless there is a cause against it; return the cause, or the sums' own."""
        return cause or self.meter.update(came.step, came.index, *came.arrays())

    def _take_shared(self, came: SharedSteps) -> None:
        """Average steps of sharded layers in; record the reading of the last that counts, where it is due."""
        last = 0
        for step, cause in came.take():
            if (cause := self._average(step, cause)) is None:
                last = step.step
            else:
                self._skip(cause)
        if came.record and last:
            self._record(last, came.last.travel)

    def _book(self, cause: str | None, step: int, travel: PendingTravel | None) -> None:
        """Book a measured step whose averages have moved, or have not for the given cause."""
        if cause is not None:
            self._skip(cause)
        elif self.is_record_due(step):
            self._record(step, travel)

    def _skip(self, cause: str) -> None:
        """Count a measured step that says nothing; a dry one was no step, and its count is taken back."""
        self.meter.skip(cause)
        if cause == "dry":
            self.meter.run.step -= 1
            self._asked = self.meter.run.recorded
            if self.meter.run.step == 0 and self._on_unbegun is not None:
                self._on_unbegun()

    def put_standings(self, standings: Iterable[Standing]) -> None:
        """Keep where a controller's rates stand after the last reading that it was handed."""
        self._history.put_standings(standings)

    def _take_fetched(self, came: FetchedTable) -> None:
        run, dry = self.meter.run, self.meter.run.skipped["dry"]
        counters, table = DeviceTable.unpack(came.block.numpy())
        self.meter.unpack(table, counters)
        # the device does not count dry steps, and counts replays of a graph that the host did not see
        taken, last = int(counters[0]), int(counters[2])
        more = taken - came.step
        if more > 0 and self._on_missed is not None:
            self._on_missed(more)
        run.step += more
        later = [other for other in self._queue if isinstance(other, FetchedTable)]
        for other in later:
            other.step += more
        self._stale = run.step != taken
        if run.skipped["dry"] > dry and run.step == 0 and self._on_unbegun is not None:
            self._on_unbegun()
        if came.record and last == taken > run.recorded:
            self._record(taken, came.travel)
        # a skipped one is requested again
        self._asked = max([run.recorded, *(other.step for other in later if other.record)])

    def _record(self, step: int, travel: PendingTravel | None) -> None:
        self.meter.run.recorded, self.meter.run.unseen = step, 1
        if not (self._complete or self._on_record or self._sinks):  # nobody waits for it
            measured = self.meter.snapshot()
            self._last.add(step, lambda: measured.reading)
            return self._history.append_later(measured)
        reading = self.meter.reading
        assert reading is not None
        if self._complete is not None:
            reading = self._complete(reading)
        self._last.add(step, lambda: reading)
        self._history.append(reading)
        if self._on_record is not None:
            self._on_record(reading, travel)
        if self._sinks is not None:
            self._sinks.write(reading)

    @property
    def reading(self) -> Reading | None:
        """The last completed reading, of sharded layers the last recorded. Waits for what is in flight."""
        self.settle()
        return self.meter.reading

    def newest_reading(self) -> Reading | None:
        """Return the last reading that has arrived, without waiting; request a newer one from a device."""
        if self.table is not None and self._stale and not self._queue and not capturing():
            self._ask(False, None)
        self.collect()
        return self.meter.reading

    def late_reading(self, lag: int) -> Reading | None:
        """Return the last recorded reading that is ``lag`` steps old or older, waiting for it if need be.

        Ranks that call it after the same step get the same one, whenever their sums arrive.
        """
        self.collect_before(self.run.step + 1 - lag)
        return self._last.late(self.run.step, lag)

    def fresh_reading(self) -> Reading | None:
        """Return the newest recorded reading that is at least :attr:`lag` steps old, if not yet handed over.

        It is waited for, so that runs are repeatable and ranks decide alike.
        """
        self.collect_before(self.run.step + 1 - self.lag)
        reading = self._last.fresh(self.run.step, self.lag)
        self.meter.run.unseen = int(self._last.unseen)
        return reading if self.lag or reading is None else self.meter.reading  # which may be newer still

    @property
    def history(self) -> History:
        """The bounded record of readings."""
        self.settle()
        return self._history

    @property
    def skipped(self) -> dict[str, int]:
        """Measured steps that moved nothing, by cause."""
        self.settle()
        return dict(self.meter.run.skipped)

    def restart(self, unavailable: Collection[Sum] = ()) -> None:
        """Start averages over without layers; the run's counters go on."""
        self.to_host()
        run = self.meter.run
        self.reset(unavailable)
        run.readings = 0
        self.meter.run = run

    def export_groups(self) -> list[dict[str, Any]]:
        """Return averages and counters of every group; ranks that share layers must all call it."""
        self._share(record=False)
        self.settle()
        return [self.meter.export_group(i) for i in range(len(self.meter.group_names))]

    def import_groups(self, saved: Sequence[Mapping[str, object]]) -> None:
        """Restore what :meth:`export_groups` returned, after groups were added and with nothing in flight."""
        for i, group in enumerate(saved):
            self.meter.import_group(i, group)
        if self.meter.run.unseen and self.meter.reading is not None:
            self._last.resume(self.meter.reading)

    def rewind(self) -> None:
        """Forget recorded readings of steps after the present one: a checkpoint was loaded."""
        self._history.rewind(self.meter.run.step)
