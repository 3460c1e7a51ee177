"""A sweep's trials in its storage: created once, taken one by one, finished, and re-queued when lost.

There is one study per cell, with a trial for every point ``k``. A trial that is lost with its worker fails,
and another is created for its point with ``attempt`` increased. Processes that do this at the same time may
create two: of those with the same point and attempt, the one with the lowest number counts, and the others
fail without running when their turn comes. So nothing here needs a lock across processes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from thermoopt.benchmarks.methods import METHODS
from thermoopt.benchmarks.report.table import row_key
from thermoopt.benchmarks.sweeps.design import design
from thermoopt.benchmarks.sweeps.protocol import Cell, Protocol
from thermoopt.benchmarks.sweeps.storage import StorageError, masked
from thermoopt.benchmarks.sweeps.trial import Row, TrialSpec

__all__ = ["RETRIES", "Item", "Studies", "Taken", "machine"]

RETRIES = 1
"""How often a trial is re-queued after its worker died: one death is bad luck, two may be its own fault."""

OPEN = (TrialState.WAITING, TrialState.RUNNING)


@dataclass(frozen=True, order=True)
class Item:
    """A trial in order of work: smallest ``k`` first, then the protocol's order of studies.

    Attributes:
        k: index of the point.
        order: position of the cell in the protocol.
        number: number of the trial in its study.
    """

    k: int
    order: int
    number: int


@dataclass(frozen=True)
class Taken:
    """A trial that this process must run.

    Attributes:
        item: the trial.
        trial_id: its id in the storage.
        spec: its specification.
    """

    item: Item
    trial_id: int
    spec: TrialSpec


def machine() -> str:
    """Return the name of the scope of process ids: the host, and on Linux its PID namespace."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


class Studies:
    """The studies of one protocol in one storage.

    Args:
        storage: as returned by :func:`open_storage`.
        protocol: the protocol of the sweep.
        url: URL of the storage, for messages.
        cells: the studies to consider; None is all of the protocol's.
    """

    def __init__(
        self, storage: RDBStorage, protocol: Protocol, url: str, cells: Iterable[Cell] | None = None
    ) -> None:
        self.storage, self.protocol = storage, protocol
        self._url = masked(url)
        wanted = None if cells is None else set(cells)
        self.cells = {i: c for i, c in enumerate(protocol.cells()) if wanted is None or c in wanted}
        self._studies: dict[int, optuna.Study] = {}
        self._designs = {seed: design(protocol, seed) for seed in protocol.seeds}

    # ---------------------------------------------------------------- making

    def name(self, cell: Cell) -> str:
        """Return the name of a cell's study in the storage."""
        return f"{self.protocol.tier}/{cell.name}"

    def check(self) -> None:
        """Raise if the storage holds the same tier of another protocol.

        Raises:
            StorageError: naming both hashes.
        """
        for study in self.storage.get_all_studies():
            theirs = study.user_attrs.get("protocol")
            if study.study_name.startswith(f"{self.protocol.tier}/") and theirs not in (
                None,
                self.protocol.hash,
            ):
                raise StorageError(
                    f"storage {self._url} holds study {study.study_name!r} of protocol {str(theirs)[:12]}, "
                    f"and this is protocol {self.protocol.hash[:12]} of the same tier: rows of both cannot "
                    "stand in one table. Take another --out and --storage, or the protocol that made it"
                )

    def make(self, rows: Iterable[Row] = (), *, again: bool = False) -> None:
        """Create missing studies and trials, and re-queue lost trials.

        Args:
            rows: rows of finished trials, which the storage may not know.
            again: whether to re-queue failed trials too.

        Raises:
            StorageError: as :meth:`check`.
        """
        self.check()
        known: dict[tuple[Any, ...], dict[int, Row]] = {}
        for row in rows:
            if row["protocol"] == self.protocol.hash:
                known.setdefault(row_key(row)[:-1], {})[row["k"]] = row
        for order, cell in self.cells.items():
            mine = known.get((cell.workload, cell.steps, cell.method, cell.seed), {})
            self.adopt(order, mine)
            self.lose_dead(order)
            self.top_up(order, mine, again=again)

    def study(self, order: int) -> optuna.Study:
        """Return the study of a cell, creating it if it is missing."""
        if order not in self._studies:
            cell = self.cells[order]
            sampler = optuna.samplers.RandomSampler(seed=0)  # never asked: the design says where
            try:
                study = optuna.load_study(storage=self.storage, study_name=self.name(cell), sampler=sampler)
            except KeyError:
                with contextlib.suppress(DuplicatedStudyError):  # another process was faster
                    optuna.create_study(storage=self.storage, study_name=self.name(cell))
                study = optuna.load_study(storage=self.storage, study_name=self.name(cell), sampler=sampler)
            if "protocol" not in study.user_attrs:
                study.set_user_attr("protocol", self.protocol.hash)
            self._studies[order] = study
        return self._studies[order]

    def top_up(self, order: int, rows: dict[int, Row] | None = None, *, again: bool = False) -> None:
        """Create the trials that a study lacks.

        A point without a trial gets its first; one whose trials have all failed gets another, unless it had
        :data:`RETRIES` of them or raised an error.

        Args:
            order: position of the cell.
            rows: finished trials by ``k``, added as they are.
            again: whether to re-queue all failed trials.
        """
        study, cell = self.study(order), self.cells[order]
        trials = self.trials(order)
        for k in range(self.protocol.points(cell.method)):
            mine = [t for t in trials if t.user_attrs["k"] == k]
            if not mine:
                study.add_trial(self._fresh(cell, k, 0, (rows or {}).get(k)))
            elif all(t.state is TrialState.FAIL for t in mine):
                last = max(mine, key=lambda t: t.user_attrs["attempt"])
                attempt = last.user_attrs["attempt"]
                if again or (attempt < RETRIES and "error" not in last.user_attrs):
                    study.add_trial(self._fresh(cell, k, attempt + 1, None))

    def _fresh(self, cell: Cell, k: int, attempt: int, row: Row | None) -> FrozenTrial:
        point: dict[str, float] = {}
        tunables = METHODS[cell.method].tunables
        if row is not None:
            point = {name: row[name] for name in tunables}
        elif k < self.protocol.design:
            point = {name: self._designs[cell.seed][k][name] for name in tunables}
        attrs: dict[str, Any] = {"k": k, "attempt": attempt}
        return optuna.trial.create_trial(
            state=TrialState.WAITING if row is None else TrialState.COMPLETE,
            params=point,
            distributions={name: self._range(name) for name in point},
            user_attrs=attrs if row is None else attrs | {"row": row},
            value=None if row is None else row["valid"],
        )

    def _range(self, name: str) -> FloatDistribution:
        low, high = getattr(self.protocol, name)
        # the map from the unit square may leave the range by the last bit
        return FloatDistribution(low * (1 - 1e-12), high * (1 + 1e-12), log=True)

    # ---------------------------------------------------------------- looking

    def made(self) -> set[int]:
        """Return the cells whose study is in the storage."""
        names = {study.study_name for study in self.storage.get_all_studies()}
        return {order for order, cell in self.cells.items() if self.name(cell) in names}

    def trials(self, order: int) -> list[FrozenTrial]:
        """Return a study's trials without duplicates."""
        return [t for t in self._all(order) if "twin" not in t.user_attrs]

    def _all(self, order: int) -> list[FrozenTrial]:
        return self.study(order).get_trials(deepcopy=False)

    def plan(self) -> list[Item]:
        """Return the trials that are waiting or running, in order of work."""
        return sorted(
            Item(t.user_attrs["k"], order, t.number)
            for order in self.cells
            for t in self.trials(order)
            if t.state in OPEN
        )

    def open(self, item: Item) -> bool:
        """Whether the point of a trial is waiting or running."""
        return any(t.user_attrs["k"] == item.k and t.state in OPEN for t in self.trials(item.order))

    def after(self, item: Item) -> Item | None:
        """Check a trial held by another process, and re-queue it if that process is dead.

        Returns:
            The trial that remains to be finished for its point, or None if there is none.
        """
        self._lose_silent(item.order)
        self.top_up(item.order)
        left = [t.number for t in self.trials(item.order) if t.user_attrs["k"] == item.k and t.state in OPEN]
        return Item(item.k, item.order, min(left)) if left else None

    # ---------------------------------------------------------------- working

    def take(self, item: Item) -> Taken | TrialState:
        """Take a waiting trial.

        The storage decides: of several processes that set a waiting trial to running, one succeeds.

        Returns:
            The trial, or its state if another process has taken it.
        """
        trials = self._all(item.order)
        it = next(t for t in trials if t.number == item.number)
        if it.state is not TrialState.WAITING:
            return it.state
        trial_id = self._id(item.order, it)
        try:
            if any(_same(t, it) and t.number < it.number for t in trials):
                self.storage.set_trial_user_attr(trial_id, "twin", True)
                self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
                return TrialState.FAIL
            # before it runs: a trial that runs and never gave a sign of life would not be missed
            self.storage.record_heartbeat(trial_id)
            if not self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                return TrialState.RUNNING
        except UpdateFinishedTrialError:
            return TrialState.FAIL
        self.storage.set_trial_user_attr(trial_id, "worker", [machine(), os.getpid()])
        return Taken(item, trial_id, self._spec(item, trial_id, it))

    def _spec(self, item: Item, trial_id: int, trial: FrozenTrial) -> TrialSpec:
        cell, protocol = self.cells[item.order], self.protocol
        point: dict[str, float] = dict(trial.params)
        tunables = METHODS[cell.method].tunables
        if tunables and not point:
            study = self.study(item.order)
            # its own seed for every point: one seed for all would repeat its draws after a stop
            study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=protocol.design, seed=cell.seed * 65_537 + item.k
            )
            asked = optuna.trial.Trial(study, trial_id)
            for name in tunables:
                low, high = self._range(name).low, self._range(name).high
                point[name] = asked.suggest_float(name, low, high, log=True)
        return TrialSpec(
            protocol=protocol.hash,
            tier=protocol.tier,
            workload=cell.workload,
            steps=cell.steps,
            method=cell.method,
            seed=cell.seed,
            k=item.k,
            lr=point.get("lr"),
            decay=point.get("decay"),
            evaluations=protocol.evaluations,
            log_every=protocol.log_every,
            retried=trial.user_attrs["attempt"] > 0,
        )

    def finish(self, trial_id: int, row: Row) -> bool:
        """Save a trial's row; return False if others had given the trial up and another replaces it."""
        try:
            self.storage.set_trial_user_attr(trial_id, "row", row)
            return self.storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [row["valid"]])
        except UpdateFinishedTrialError:
            return False

    def fail(self, trial_id: int, error: str) -> None:
        """Give a trial up after an error, which would occur again."""
        try:
            self.storage.set_trial_user_attr(trial_id, "error", error)
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return  # given up by others already

    def release(self, trial_id: int) -> None:
        """Re-queue a trial that this process took and will not finish, without counting an attempt."""
        try:
            # clear the owner first, or the next one would look dead for a moment
            self.storage.set_trial_user_attr(trial_id, "worker", None)
            self.storage.set_trial_state_values(trial_id, TrialState.WAITING)
        except UpdateFinishedTrialError:
            return  # given up by others already

    # ---------------------------------------------------------------- losing

    def adopt(self, order: int, rows: dict[int, Row]) -> None:
        """Finish trials whose rows are in the file: their workers stopped before updating the storage."""
        for trial in self.trials(order) if rows else ():
            row = rows.get(trial.user_attrs["k"])
            if row is not None and trial.state in OPEN and _alive(trial) is not True:
                self.finish(self._id(order, trial), row)

    def lose_dead(self, order: int, *, count: bool = True) -> int:
        """Give up trials whose worker on this machine is gone.

        Args:
            order: of the cell.
            count: False puts them back as if never taken, for workers that were told to stop.

        Returns:
            How many.
        """
        dead = [t for t in self.trials(order) if t.state is TrialState.RUNNING and _alive(t) is False]
        for trial in dead:
            if "row" in trial.user_attrs:  # it died between the two calls that finish a trial
                self.finish(self._id(order, trial), trial.user_attrs["row"])
            elif count:
                self._fail_lost(self._id(order, trial))
            else:
                self.release(self._id(order, trial))
        return len(dead)

    def lose(self, item: Item, *, count: bool = True) -> None:
        """Give up a dead worker's trial, and re-queue it."""
        self.lose_dead(item.order, count=count)
        self.top_up(item.order)

    def _lose_silent(self, order: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            fail_stale_trials(self.study(order))

    def _fail_lost(self, trial_id: int) -> None:
        try:
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return  # another process saw it first

    def _id(self, order: int, trial: FrozenTrial) -> int:
        study_id = self.storage.get_study_id_from_name(self.study(order).study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)


def _same(a: FrozenTrial, b: FrozenTrial) -> bool:
    return (a.user_attrs["k"], a.user_attrs["attempt"]) == (b.user_attrs["k"], b.user_attrs["attempt"])


def _alive(trial: FrozenTrial) -> bool | None:
    """Whether the process that holds a trial is alive; None if there is none or it is not visible."""
    where, pid = trial.user_attrs.get("worker") or (None, 0)
    if where != machine():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _zombie(pid)


def _zombie(pid: int) -> bool:
    """Whether a process is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in "ZX"  # proc(5): the state follows the name
