"""A worker: one process with one torch thread, which runs one trial after another until none is left.

The sweep starts it with its orders as the first line of its input; it reports events as lines of JSON. When
its input ends, the sweep is gone: the worker re-queues its trial and exits.
"""

from __future__ import annotations

import errno
import functools
import heapq
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from thermoopt.benchmarks.harness.room import DiskFull, disk_full
from thermoopt.benchmarks.report.table import append_row, rows_file
from thermoopt.benchmarks.sweeps.protocol import Protocol
from thermoopt.benchmarks.sweeps.storage import open_storage
from thermoopt.benchmarks.sweeps.studies import Item, Studies, Taken
from thermoopt.benchmarks.sweeps.trial import Row, Stopped, TrialSpec, run_trial

__all__ = ["DISK_FULL", "NO_STORAGE", "Heartbeat", "Orders", "Worker", "main", "patient", "reason"]

DISK_FULL, NO_STORAGE = 74, 69
"""Exit statuses, sysexits.h's EX_IOERR and EX_UNAVAILABLE."""

LOOK = 60.0
"""Seconds between checks on trials held by other processes: half the grace period after which a silent trial
counts as lost."""

POLL = 1.0
"""Seconds between checks when nothing else is left to do."""

PATIENCE = (0.5, 1, 2, 4, 8, 16, 32)
"""Seconds before each new attempt to reach the storage: a restarting database takes up to a minute."""

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Orders:
    """A worker's orders.

    Attributes:
        storage: URL of the storage.
        tier, protocol: name and content of the tier.
        out: folder for rows and logs.
        plan: ``k``, order and number of every open trial.
        heartbeat, grace: as in :func:`open_storage`.
    """

    storage: str
    tier: str
    protocol: dict[str, Any]
    out: str
    plan: list[list[int]]
    heartbeat: int
    grace: int

    def line(self) -> str:
        """The orders as one line."""
        return json.dumps(asdict(self)) + "\n"


class Worker:
    """Runs the trials of a plan.

    Args:
        studies: the studies with the trials.
        plan: the trials, in any order.
        out: folder for rows and logs.
        tell: receives events.
        stopped: called before every step; whether to stop.
        run: runs a trial.
    """

    def __init__(
        self,
        studies: Studies,
        plan: Iterable[Item],
        out: Path,
        tell: Tell,
        stopped: Callable[[], bool],
        run: Callable[..., Row] = run_trial,
    ) -> None:
        self._studies, self._out, self._tell, self._stopped, self._run = studies, out, tell, stopped, run
        self._plan = list(plan)
        heapq.heapify(self._plan)
        self._elsewhere: set[Item] = set()
        self._looked = time.monotonic()
        self._life = Heartbeat(studies.storage)

    def work(self) -> None:
        """Run trials until none is left or ``stopped`` returns True.

        It waits for trials that run elsewhere, and runs them here if their process dies.

        Raises:
            DiskFull: if a row or log cannot be written.
            StorageInternalError: if the storage is unreachable for longer than :data:`PATIENCE`.
        """
        with self._life:
            while not self._stopped():
                if self._elsewhere and (not self._plan or time.monotonic() - self._looked > LOOK):
                    self._look()
                if self._plan:
                    self._try(heapq.heappop(self._plan))
                elif self._elsewhere:
                    time.sleep(POLL)
                else:
                    return

    def _look(self) -> None:
        for item in sorted(self._elsewhere):
            left = patient(functools.partial(self._studies.after, item))
            self._elsewhere.discard(item)
            if left == item:
                self._elsewhere.add(item)
            elif left is not None:
                heapq.heappush(self._plan, left)
        self._looked = time.monotonic()

    def _try(self, item: Item) -> None:
        taken = patient(lambda: self._studies.take(item))
        if isinstance(taken, TrialState):
            if taken is TrialState.RUNNING:
                self._elsewhere.add(item)
            return
        self._life.trial = taken.trial_id
        about = _words(taken)
        self._tell({"event": "start", **about})
        try:
            row = self._run(taken.spec, self._out / "logs", self._stopped)
        except Stopped:
            patient(lambda: self._studies.release(taken.trial_id))
            self._tell({"event": "released", **about})
        except Exception as error:
            self._failed(taken, error)
        else:
            if self._keep(taken, row):
                told = {name: row[name] for name in ("valid", "diverged", "seconds", "peak_mb")}
                self._tell({"event": "done", **about, **told})
            else:
                self._tell({"event": "late", **about})
        finally:
            self._life.trial = None

    def _failed(self, taken: Taken, error: Exception) -> None:
        if disk_full(error):
            patient(lambda: self._studies.release(taken.trial_id))
            self._tell({"event": "released", **_words(taken)})
            raise DiskFull(errno.ENOSPC, f"no room for {self._out / 'logs'}") from error
        why = "".join(traceback.format_exception_only(error)).strip()
        patient(lambda: self._studies.fail(taken.trial_id, "".join(traceback.format_exception(error))))
        self._tell({"event": "failed", "why": why, **_words(taken)})

    def _keep(self, taken: Taken, row: Row) -> bool:
        """Save a row in storage and file, each even if the other fails; return False if it came too late."""
        kept, trouble = True, None  # type: bool, Exception | None
        try:
            kept = patient(lambda: self._studies.finish(taken.trial_id, row))
        except (DiskFull, StorageInternalError) as error:
            trouble = error
        if kept:
            append_row(rows_file(self._out), row)
        if trouble is not None:
            raise trouble
        return kept


def reason(error: BaseException) -> str:
    """Return an error in one line: the database's own message without the wrapping around it."""
    inner = error.__cause__ if isinstance(error, StorageInternalError) else None
    return str(inner or error).splitlines()[0]


def patient(call: Callable[[], Any]) -> Any:
    """Call a function, repeatedly if the storage fails in a way that may be temporary.

    Raises:
        DiskFull: at once, since waiting does not help.
        StorageInternalError: the last error.
    """
    for seconds in PATIENCE:
        try:
            return call()
        except StorageInternalError as error:
            if disk_full(error):
                raise
            time.sleep(seconds)
    return call()


def _words(taken: Taken) -> dict[str, Any]:
    spec: TrialSpec = taken.spec
    names = ("workload", "steps", "method", "seed", "k", "lr", "decay")
    return {"item": list(asdict(taken.item).values())} | {name: getattr(spec, name) for name in names}


class Heartbeat(threading.Thread):
    """Sends heartbeats for the running trial.

    Attributes:
        trial: the storage's id of it; None between trials.
    """

    def __init__(self, storage: RDBStorage) -> None:
        super().__init__(daemon=True)
        self._storage = storage
        self._end = threading.Event()
        self.trial: int | None = None

    def __enter__(self) -> Heartbeat:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()

    def run(self) -> None:
        """Send heartbeats until the end, skipping those that the storage does not accept."""
        interval = self._storage.get_heartbeat_interval()
        while not self._end.wait(interval):
            trial = self.trial
            if trial is not None:
                try:
                    self._storage.record_heartbeat(trial)
                except (DiskFull, StorageInternalError):
                    continue  # the next sign is due before the trial counts as lost
        self._storage.remove_session()


def main() -> int:
    """Read orders and work.

    Returns:
        Exit status: 0 when nothing is left or it was told to stop.
    """
    torch.set_num_threads(1)
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard stops the sweep, which tells its workers
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    orders = Orders(**json.loads(sys.stdin.readline()))

    def listen() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=listen, daemon=True).start()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is not an event

    def tell(event: dict[str, Any]) -> None:
        try:
            out.write(json.dumps(event) + "\n")
        except BrokenPipeError:
            stop.set()

    try:
        storage = open_storage(orders.storage, heartbeat=orders.heartbeat, grace=orders.grace)
        studies = Studies(storage, Protocol.of(orders.tier, orders.protocol), orders.storage)
        Worker(studies, (Item(*i) for i in orders.plan), Path(orders.out), tell, stop.is_set).work()
    except (DiskFull, StorageInternalError) as error:
        full = disk_full(error)
        tell({"event": "trouble", "why": reason(error)})
        return DISK_FULL if full else NO_STORAGE
    return 0


if __name__ == "__main__":
    os._exit(main())  # a thread may still wait for input
