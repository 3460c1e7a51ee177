"""Runs a sweep: starts workers, shows their progress, and re-queues the trials of dead ones."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from optuna.exceptions import StorageInternalError

from thermoopt.benchmarks.harness.room import DiskFull
from thermoopt.benchmarks.sweeps.progress import Display
from thermoopt.benchmarks.sweeps.protocol import Protocol
from thermoopt.benchmarks.sweeps.studies import Item, Studies
from thermoopt.benchmarks.sweeps.worker import DISK_FULL, NO_STORAGE, Orders, patient

__all__ = ["LEAVING", "Sweep"]

LEAVING = 20.0
"""Seconds a worker gets to re-queue its trial: it checks after every step, and may be loading data."""

ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class _Hand:
    """A worker process, and the trial it has."""

    number: int
    process: subprocess.Popen[str]
    errors: Path
    listener: threading.Thread
    trial: dict[str, Any] | None = None
    worked: bool = False  # had a trial, so that it could start at all


@dataclass
class Sweep:
    """A process with workers.

    Attributes:
        studies: the studies whose trials are run.
        url: URL of their storage.
        out: folder for rows and logs.
        workers: number of processes, at least 1.
        display: receives the events.
        heartbeat, grace: as in :func:`open_storage`.
        trouble: why workers had to stop, in words.
    """

    studies: Studies
    url: str
    out: Path
    workers: int
    display: Display
    heartbeat: int
    grace: int
    trouble: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start without workers."""
        self._hands: dict[int, _Hand] = {}
        self._events: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self._started = 0

    def run(self) -> None:
        """Run until no trial is left.

        A worker that dies during a trial is replaced, and the trial is re-queued once. A worker that cannot
        continue because of a full disk or a lost storage stops all.

        Raises:
            KeyboardInterrupt: after the workers have re-queued their trials.
        """
        with _terminate_as_interrupt():
            try:
                plan = self.studies.plan()
                for _ in range(min(self.workers, len(plan))):
                    self._hire(plan)
                while self._hands:
                    with contextlib.suppress(queue.Empty):
                        number, event = self._events.get(timeout=1)
                        self._take(self._hands[number], event)
                    self.display.refresh()
            except KeyboardInterrupt:
                self.display.say("stopping: workers put their trials back")
                raise
            finally:
                self._dismiss()

    # ---------------------------------------------------------------- workers

    def _hire(self, plan: list[Item]) -> None:
        protocol: Protocol = self.studies.protocol
        orders = Orders(
            self.url,
            protocol.tier,
            protocol.content,
            str(self.out),
            [[i.k, i.order, i.number] for i in plan],
            self.heartbeat,
            self.grace,
        )
        number, self._started = self._started, self._started + 1
        errors = self.out / "logs" / f"worker{number}.err"
        errors.parent.mkdir(parents=True, exist_ok=True)
        with errors.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "thermoopt.benchmarks.sweeps.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, **dict.fromkeys(ONE_THREAD, "1")},
                start_new_session=True,  # the keyboard's signal goes to the sweep, which tells its workers
            )
        assert process.stdin is not None
        assert process.stdout is not None
        listener = threading.Thread(target=self._listen, args=(number, process.stdout), daemon=True)
        self._hands[number] = _Hand(number, process, errors, listener)
        listener.start()
        with contextlib.suppress(BrokenPipeError):  # it is dead: its exit status will say why
            process.stdin.write(orders.line())
            process.stdin.flush()  # and stays open: its end would tell the worker that nobody listens

    def _listen(self, number: int, lines: IO[str]) -> None:
        for line in lines:
            with contextlib.suppress(ValueError):  # torn by its death
                self._events.put((number, json.loads(line)))
        self._events.put((number, None))

    def _take(self, hand: _Hand, event: dict[str, Any] | None) -> None:
        if event is None:
            self._left(hand)
        elif event["event"] == "trouble":
            self.trouble.append(event["why"])
        else:
            hand.trial = event if event["event"] == "start" else None
            hand.worked = True
            self.display.take(event)

    def _left(self, hand: _Hand) -> None:
        status = self._part(hand)
        if status == 0:
            self._forget(hand)
            return
        if status in (DISK_FULL, NO_STORAGE):
            if hand.trial is not None:
                self.display.take(hand.trial | {"event": "released"})
            self._tell_all_to_stop()
            return
        why = _why(status, hand.errors)
        if not hand.worked:
            self.trouble.append(f"a worker could not start: {why}")
            return
        self._bury(hand, why)
        self._hire(patient(self.studies.plan))

    def _part(self, hand: _Hand) -> int:
        """Wait for the end of a process that is about to end; its exit status."""
        status = hand.process.wait()
        hand.listener.join()
        del self._hands[hand.number]
        for stream in (hand.process.stdin, hand.process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # nobody is left to read its input
                stream.close()
        if not hand.errors.stat().st_size:
            hand.errors.unlink()
        return status

    def _bury(self, hand: _Hand, why: str) -> None:
        """Re-queue the trial of a dead worker."""
        if hand.trial is None:
            return
        item = Item(*hand.trial["item"])
        patient(lambda: self.studies.lose(item))
        again = patient(lambda: self.studies.open(item))
        self.display.take(hand.trial | {"event": "lost", "why": why, "again": again})

    def _forget(self, hand: _Hand) -> None:
        if hand.trial is not None:  # it was told to stop, and its last word was lost
            # where the storage is gone, the next resume puts it back
            with contextlib.suppress(DiskFull, StorageInternalError):
                self.studies.lose(Item(*hand.trial["item"]), count=False)

    # ---------------------------------------------------------------- stopping

    def _tell_all_to_stop(self) -> None:
        for hand in self._hands.values():
            hand.process.terminate()

    def _dismiss(self) -> None:
        """Have all workers re-queue their trials, and re-queue those of workers that do not."""
        if not self._hands:
            return
        end = time.monotonic() + LEAVING
        try:
            self._tell_all_to_stop()
            while self._hands and time.monotonic() < end:
                with contextlib.suppress(queue.Empty):
                    number, event = self._events.get(timeout=0.2)
                    hand = self._hands[number]
                    if event is None:
                        self._part(hand)
                        self._forget(hand)
                    else:
                        self._take(hand, event)
        except KeyboardInterrupt:  # once more: no more waiting
            self.display.say("stopping now")
        for hand in list(self._hands.values()):
            hand.process.kill()
            self._part(hand)
            self._forget(hand)


def _why(status: int, errors: Path) -> str:
    """Describe in words how a process ended."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    try:
        said = errors.read_text(errors="replace").strip().splitlines()
    except OSError:
        said = []
    return f"exit status {status}" + (f": {said[-1]}" if said else "")


@contextlib.contextmanager
def _terminate_as_interrupt() -> Any:
    """Treat SIGTERM, with which batch systems end a job, like an interrupt from the keyboard."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
