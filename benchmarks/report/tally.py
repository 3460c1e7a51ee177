"""Progress of a sweep: counts of every study, for the status and the progress table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from optuna.trial import TrialState

from thermoopt.benchmarks.sweeps.protocol import Cell
from thermoopt.benchmarks.sweeps.studies import Studies
from thermoopt.inspection import Table

__all__ = ["Count", "Failure", "Tally", "duration"]


@dataclass
class Count:
    """Points of a study by their state."""

    done: int = 0
    running: int = 0
    waiting: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.done + self.running + self.waiting + self.failed


@dataclass(frozen=True)
class Failure:
    """A point that was given up.

    Attributes:
        cell, k: of the point.
        why: the reason in one line.
    """

    cell: Cell
    k: int
    why: str


@dataclass
class Tally:
    """Counts of all studies.

    Attributes:
        counts: by study.
        failures: points that were given up.
        lasted: seconds and number of finished trials, by workload and steps.
        peak_mb: largest of all rows.
    """

    counts: dict[Cell, Count] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    lasted: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    peak_mb: float = 0.0

    @classmethod
    def of(cls, studies: Studies) -> Tally:
        """Count what is in the storage; all points of a study that does not exist yet are waiting."""
        tally = cls()
        made = studies.made()
        for order, cell in studies.cells.items():
            count = tally.counts[cell] = Count()
            trials = studies.trials(order) if order in made else []
            for k in range(studies.protocol.points(cell.method)):
                mine = [t for t in trials if t.user_attrs["k"] == k]
                states = {t.state for t in mine}
                if TrialState.COMPLETE in states:
                    count.done += 1
                    done = next(t for t in mine if t.state is TrialState.COMPLETE)
                    tally.peak_mb = max(tally.peak_mb, done.user_attrs["row"].get("peak_mb", 0.0))
                    if done.duration is not None:
                        tally.took(cell, done.duration.total_seconds())
                elif TrialState.RUNNING in states:
                    count.running += 1
                elif TrialState.WAITING in states or not mine:
                    count.waiting += 1
                else:
                    count.failed += 1
                    last = max(mine, key=lambda t: t.user_attrs["attempt"])
                    why = last.user_attrs.get("error", "its worker died").strip().splitlines()[-1]
                    tally.failures.append(Failure(cell, k, why))
        return tally

    def took(self, cell: Cell, seconds: float) -> None:
        """Record how long a trial took."""
        sums = self.lasted.setdefault((cell.workload, cell.steps), [0.0, 0])
        sums[0] += seconds
        sums[1] += 1

    @property
    def total(self) -> Count:
        """Counts of all studies together."""
        return _sum(self.counts.values())

    def seconds_left(self, workers: int) -> float | None:
        """Estimate from trials of the same workload, or else of all; None without any."""
        if not self.lasted:
            return None
        means = {key: total / n for key, (total, n) in self.lasted.items()}
        overall = sum(means.values()) / len(means)
        work = sum(
            (c.waiting + c.running / 2) * means.get((cell.workload, cell.steps), overall)
            for cell, c in self.counts.items()
        )
        return work / workers

    def table(self, title: str) -> Table:
        """Return the table, one row per method and one column per workload."""
        workloads = list(dict.fromkeys(cell.workload for cell in self.counts))
        methods = list(dict.fromkeys(cell.method for cell in self.counts))
        rows = [
            (
                method,
                *(
                    _cell(_sum(n for c, n in self.counts.items() if (c.method, c.workload) == (method, w)))
                    for w in workloads
                ),
            )
            for method in methods
        ]
        note = "done + running / all"
        if self.failures:
            note += "; ! failed"
        return Table(title, ("method", *workloads), rows, note=note)


def _sum(counts: Iterable[Count]) -> Count:
    total = Count()
    for c in counts:
        total.done += c.done
        total.running += c.running
        total.waiting += c.waiting
        total.failed += c.failed
    return total


def _cell(count: Count) -> str:
    if not count.total:
        return "-"
    running = f"+{count.running}" if count.running else ""
    failed = f" !{count.failed}" if count.failed else ""
    return f"{count.done}{running}/{count.total}{failed}"


def duration(seconds: float) -> str:
    """Format a duration."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m:02} min" if hours else f"{m} min {s:02} s" if m else f"{s} s"
