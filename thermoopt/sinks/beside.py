"""Background writing: a thread that encodes and writes the items of the training thread."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections import deque
from itertools import islice
from typing import Any, Protocol

__all__ = ["BLOCK", "CAPACITY", "SECONDS", "BlockWriter", "Pipe"]

CAPACITY = 64
"""Most readings that may wait, including those being written: the most that a crash can lose."""

BLOCK = CAPACITY // 2
"""Number of readings that are written together, during which as many more may arrive."""

SECONDS = 2.0
"""Age in seconds at which fewer readings are written: including the write, well under 5 seconds."""

PATIENCE = 0.1
"""Total seconds that training waits for a full queue before a warning."""

RETRY = 1.0
"""Seconds between attempts while writing fails."""

MAX_UNSENT = 10_000
"""Readings kept while writing fails, as many as in a history; the oldest are dropped first, and counted."""


ENDING = 60.0
"""Seconds that a process waits at its end for the last row group and the table of layers, which took over 5
at a load of 16. All readings are on file by then; a disk that hangs must not hold it for ever."""


class BlockWriter(Protocol):
    """Writes items, all of them or none; called from one thread at a time."""

    news: list[str]
    """Messages for the training thread; the pipe empties it."""

    def write(self, items: list[Any]) -> None:
        """Write items, or raise: the same items are then offered again."""

    def settle(self) -> None:
        """Complete the file: everything written so far is then readable."""

    def end(self) -> None:
        """Called at exit and when the sink is closed: no items follow for now."""

    def restart(self) -> None:
        """Start over in a forked process."""


class Pipe:
    """A bounded queue with a thread, which starts with the first item.

    A full queue makes :meth:`put` wait, with one warning. While the writer fails, nothing waits: items are
    kept, the writer is retried, and :meth:`put` or :meth:`flush` warns. A forked child has neither the
    parent's items nor its thread. Where the parent has begun to write, the child writes nothing: its items
    are dropped, with a warning; otherwise they are written by a thread of its own.

    Args:
        writer: writes the items.
        name: name of the sink, for messages.
    """

    def __init__(self, writer: BlockWriter, name: str) -> None:
        self._writer = writer
        self._name = name
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._items: deque[Any] = deque()
        self._oldest = 0.0
        self._thread: threading.Thread | None = None
        self._asked = self._settled = 0  # flushes
        self._attempts = 0
        self._failure: Exception | None = None
        self._closing = False
        self._told = {"failure": False, "full": False, "dropped": False, "forked": False, "unwritten": False}
        self._said: set[str] = set()
        self.dropped = 0
        self.waited = 0.0

    @property
    def unsent(self) -> int:
        """Number of items not written yet."""
        return len(self._items) if self.mine else 0

    @property
    def mine(self) -> bool:
        """Whether the waiting items belong to this process."""
        return self._process == os.getpid()

    def put(self, item: Any) -> None:
        """Add one item."""
        if not self.mine:
            if self._thread is not None:  # the file is the parent's, whose lock is not to be trusted here
                self._leave_out()
                return
            self._writer.restart()
            self._begin()
        with self._changed:
            if len(self._items) >= CAPACITY and self._failure is None:
                self._wait_for_room()
            if not self._items:
                self._oldest = time.monotonic()
            self._items.append(item)
            if len(self._items) > MAX_UNSENT:
                self._items.popleft()
                self.dropped += 1
            count = len(self._items)
            if count == 1 or count % BLOCK == 0:
                self._changed.notify_all()
            self._start()
        self._tell()

    def flush(self) -> None:
        """Wait until all items are on file, or an attempt to write them has failed."""
        if not self.mine or self._thread in (None, threading.current_thread()):
            return
        with self._changed:
            self._asked += 1
            asked, attempts = self._asked, self._attempts
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: (
                    self._settled >= asked
                    or (self._failure is not None and self._attempts > attempts)
                    or not self._alive()
                )
            )
        if not self._alive():
            self._work_off()
        self._tell()

    def close(self) -> None:
        """Flush and end the thread; at exit and when the sink is gone."""
        if not self.mine:
            return
        if self._thread is threading.current_thread():  # it collected the garbage that the sink was part of
            self._asked += 1
            self._closing = True
            return
        self.flush()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=ENDING)
            if self._thread.is_alive():
                print(f"{self._name}: not all written after {ENDING:.0f} s; given up", file=sys.stderr)
        self._tell()
        if self._items and not self._told["unwritten"]:
            self._told["unwritten"] = True
            print(
                f"{self._name}: {len(self._items)} readings were not written ({self._failure!r})",
                file=sys.stderr,
            )

    # ---------------------------------------------------------------- the training thread

    def _leave_out(self) -> None:
        """Drop an item of a forked child."""
        self.dropped += 1
        if not self._told["forked"]:
            self._told["forked"] = True
            warnings.warn(
                f"sink {self._name} belongs to process {self._process}, from which this one was forked: "
                "readings of this process are not recorded, only counted in .dropped. To record them, create "
                "the optimizer and its sinks in this process",
                RuntimeWarning,
                stacklevel=6,
            )

    def _wait_for_room(self) -> None:
        began = time.monotonic()
        self._changed.wait_for(
            lambda: len(self._items) < CAPACITY or self._failure is not None or not self._alive()
        )
        self.waited += time.monotonic() - began

    def _tell(self) -> None:
        """Issue the thread's warnings, once per kind, in the thread that added the items."""
        failure, told = self._failure, self._told
        while self._writer.news:
            message = f"sink {self._name}: {self._writer.news.pop()}"
            if message not in self._said:
                self._said.add(message)
                warnings.warn(message, RuntimeWarning, stacklevel=5)
        if failure is not None and not told["failure"]:
            told["failure"] = True
            warnings.warn(
                f"sink {self._name} raised {failure!r}; training goes on, readings for it are kept and "
                "offered again every second",
                RuntimeWarning,
                stacklevel=5,
            )
        if self.dropped and not told["dropped"]:
            told["dropped"] = True
            warnings.warn(
                f"sink {self._name} has failed for {MAX_UNSENT} readings: from now on the oldest are given "
                "up, and counted in .dropped",
                RuntimeWarning,
                stacklevel=5,
            )
        if self.waited > PATIENCE and not told["full"]:
            told["full"] = True
            warnings.warn(
                f"sink {self._name} writes more slowly than readings come: training has waited "
                f"{self.waited:.2g} s for it (the total is kept in .waited). Measure less often "
                "(measure_every, ema_steps), or write to a faster disk",
                RuntimeWarning,
                stacklevel=5,
            )

    def _start(self) -> None:
        if self._alive():
            return
        self._thread = threading.Thread(target=self._run, name=f"thermoopt {self._name}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is shutting down: no more threads
            self._work_off()

    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _work_off(self) -> None:
        """Write here, where no thread can."""
        try:
            while self._items:
                block = list(islice(self._items, CAPACITY))
                self._writer.write(block)
                for _ in block:
                    self._items.popleft()
            self._writer.settle()
            if self._closing:
                self._writer.end()
        except Exception as error:  # told by those who asked
            self._failure = error

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due():
                    left = self._oldest + SECONDS - time.monotonic() if self._items else None
                    self._changed.wait(left if left is None else max(left, 0.0))
                block = list(islice(self._items, CAPACITY))
                settle = self._asked if len(block) == len(self._items) else 0
                if self._closing and not block and settle <= self._settled:
                    break
            try:
                if block:
                    self._writer.write(block)
                if settle > self._settled:
                    self._writer.settle()
            except Exception as error:  # disks fill and mounts vanish; training goes on
                with self._changed:
                    self._attempts += 1
                    self._failure = error
                    self._changed.notify_all()
                    if self._closing:
                        return
                    asked = self._asked
                    self._changed.wait_for(lambda: self._asked > asked or self._closing, RETRY)  # noqa: B023
                continue
            with self._changed:
                self._attempts += 1
                self._failure = None
                written = set(map(id, block))  # while it failed, the oldest may have been given up
                while self._items and id(self._items[0]) in written:
                    self._items.popleft()
                self._oldest = time.monotonic()
                self._settled = max(self._settled, settle)
                self._changed.notify_all()

        try:
            self._writer.end()
        except Exception as error:  # as above
            self._writer.news.append(f"could not be completed at the end ({error})")

    def _due(self) -> bool:
        return (
            len(self._items) >= BLOCK
            or self._asked > self._settled
            or self._closing
            or (bool(self._items) and time.monotonic() - self._oldest >= SECONDS)
        )
