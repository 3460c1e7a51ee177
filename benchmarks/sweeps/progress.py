"""The display of a running sweep: a live table on a terminal, one line per trial elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

from thermoopt.benchmarks.report.tally import Tally, duration
from thermoopt.benchmarks.sweeps.protocol import Cell

__all__ = ["Display"]

LAST = 3
"""Number of latest events shown below the live table."""


class Display:
    """Receives events from workers and shows the progress of the sweep.

    Args:
        tally: the progress so far, which is updated.
        workers: number of workers that share the remaining trials.
        live: whether to draw a live table; None does so on a terminal if rich is installed.
    """

    def __init__(self, tally: Tally, workers: int, live: bool | None = None) -> None:
        self.tally, self._workers = tally, workers
        self._start = time.monotonic()
        self._begun: dict[tuple[Any, ...], float] = {}
        self._said: list[str] = []
        self._live = _live() if live or (live is None and sys.stdout.isatty()) else None

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self.refresh()
            self._live.stop()

    def say(self, line: str) -> None:
        """Show a line."""
        if self._live is None:
            print(line, flush=True)
        else:
            self._said = [*self._said, line][-LAST:]
            self.refresh()

    def take(self, event: dict[str, Any]) -> None:
        """Handle an event from a worker."""
        kind = event["event"]
        cell = Cell(event["workload"], event["steps"], event["method"], event["seed"])
        count = self.tally.counts[cell]
        key = (cell, event["k"])
        if kind == "start":
            count.waiting, count.running = count.waiting - 1, count.running + 1
            self._begun[key] = time.monotonic()
            self.refresh()
            return
        count.running -= 1
        began = self._begun.pop(key, time.monotonic())
        if kind == "done":
            count.done += 1
            self.tally.took(cell, time.monotonic() - began)
            self.tally.peak_mb = max(self.tally.peak_mb, event["peak_mb"])
            what = "diverged" if event["diverged"] else f"{event['valid']:.4f}"
            took = f"{event['seconds']:.1f} s{self._left()}"
            self.say(f"{self._counted()}  {trial_words(event)}  {what}  {took}")
        elif kind == "failed":
            count.failed += 1
            self.say(f"{self._counted()}  {trial_words(event)}  failed: {event['why']}")
        elif kind == "lost":
            self.say(f"{self._counted()}  {trial_words(event)}  its worker died: {event['why']}")
            count.waiting += event["again"]
            count.failed += not event["again"]
        else:  # released, or late: another process has it
            count.waiting += 1

    def refresh(self) -> None:
        """Redraw."""
        if self._live is not None:
            from rich.text import Text

            size = shutil.get_terminal_size()
            title = f"{self._counted()} trials, {duration(time.monotonic() - self._start)}{self._left()}"
            lines = [*self.tally.table(title).lines(size.columns), *self._said]
            self._live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))

    def _counted(self) -> str:
        total = self.tally.total
        return f"{total.done + total.failed}/{total.total}"

    def _left(self) -> str:
        seconds = self.tally.seconds_left(self._workers)
        return "" if seconds is None else f", about {duration(seconds)} left"


def trial_words(event: dict[str, Any]) -> str:
    """Return the name of a trial in words."""
    point = "".join(f"  {n} {event[n]:.2e}" for n in ("lr", "decay") if event[n] is not None)
    where = f"{event['workload']} {event['steps']}  {event['method']}  seed {event['seed']}  k {event['k']}"
    return where + point


def _live() -> Any | None:
    try:
        from rich.live import Live
    except ImportError:
        return None
    return Live(auto_refresh=True, refresh_per_second=2)
