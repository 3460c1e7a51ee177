"""The rows of a sweep in order: equal budgets, the best of each search, ratios, times, what is missing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from statistics import fmean, median
from typing import Any

import numpy as np

from thermoopt.benchmarks.report.stats import Interval, first_at_or_below, interval, on_the_clock

__all__ = ["MARGIN", "REFERENCE", "RESOLUTION", "Cell", "Outcomes", "Row", "Study", "label"]

Row = Mapping[str, Any]
Cell = tuple[str, int]  # workload, steps
Study = tuple[str, int, str, int]  # workload, steps, method, seed

REFERENCE = "adamw linear"
"""The reference of all comparisons: AdamW with linear-to-zero at the best point of its search."""

RESOLUTION = 1e-6
"""Losses below this share of the untrained model's loss count as equal to that share. float32 resolves 1.2e-7
of a loss; a loss over a known optimum is a difference of two such numbers, each a sum of many: eight
roundings."""

MARGIN = 0.02
"""Target above the reference's median final loss, as a share: what language-model losses move by chance alone
(0.02 to 0.04 of 1.66 from seed to seed and from lr to neighbouring lr). Without it the reference itself
would miss its target with half of its seeds."""

FIELDS: dict[str, type | tuple[type, ...]] = {
    "protocol": str,
    "tier": str,
    "workload": str,
    "metric": str,
    "steps": int,
    "method": str,
    "tunables": (list, tuple),
    "seed": int,
    "k": int,
    "lr": (int, float, type(None)),
    "decay": (int, float, type(None)),
    "valid": (int, float),
    "initial": (int, float),
    "diverged": bool,
    "curve": (list, tuple),
    "seconds": (int, float),
    "eval_seconds": (int, float),
    "step_ms": (int, float),
    "peak_mb": (int, float),
    "sha256": str,
    "retried": bool,
}
"""What a row must hold."""


def label(cell: Cell) -> str:
    """Name of a workload at a horizon."""
    return f"{cell[0]} {cell[1]}"


class Outcomes:
    """Rows by (workload, steps), method and seed.

    Args:
        rows: one per finished trial, in any order.
        planned: the studies that the protocol has; None for every combination of the workloads, methods and
            seeds that occur. Planned trials without a row are in :attr:`missing`.

    Attributes:
        rows: sorted, so that the order in which workers finished plays no part.
        cells: workloads at their horizons.
        methods: the reference first, then by name.
        seeds: in ascending order.

    Raises:
        ValueError: there is no row; one lacks a field or holds a value that it cannot; two are of one trial;
            they are of more than one protocol, or of different data.
    """

    def __init__(self, rows: Sequence[Row], planned: Collection[Study] | None = None) -> None:
        _check(rows)
        self.rows = sorted(rows, key=lambda r: (r["workload"], r["steps"], r["method"], r["seed"], r["k"]))
        found = {_study(row) for row in self.rows}
        keys = found | set(found if planned is None else planned)
        self.cells: tuple[Cell, ...] = tuple(sorted({key[:2] for key in keys}))
        self.methods: tuple[str, ...] = tuple(
            sorted({key[2] for key in keys}, key=lambda name: (name != REFERENCE, name))
        )
        self.seeds: tuple[int, ...] = tuple(sorted({key[3] for key in keys}))
        if planned is None:
            keys = {(*cell, m, seed) for cell in self.cells for m in self.methods for seed in self.seeds}
        self.missing: tuple[Study, ...] = tuple(sorted(keys - found))
        initial: dict[Cell, list[float]] = defaultdict(list)
        for row in self.rows:
            initial[row["workload"], row["steps"]].append(row["initial"])
        self._floors = {cell: RESOLUTION * max(median(values), 0.0) for cell, values in initial.items()}
        self._trials: dict[Study, list[Row]] = defaultdict(list)
        self._tunables: dict[str, tuple[str, ...]] = {}
        self._ratios: dict[tuple[Cell, str, str], Interval | None] = {}
        for row in self.rows:
            self._trials[_study(row)].append(row)
            self._tunables[row["method"]] = tuple(row["tunables"])

    @property
    def searches(self) -> int:
        """Searches with a finished trial."""
        return len(self._trials)

    def tunables(self, method: str) -> tuple[str, ...]:
        """Tunables that the search of a method varies; none if it has not run."""
        return self._tunables.get(method, ())

    def metric(self, cell: Cell) -> str:
        """Unit of the loss."""
        return next((row["metric"] for row in self.rows if (row["workload"], row["steps"]) == cell), "")

    @cached_property
    def budgets(self) -> dict[Cell, int]:
        """Trials that every search of a cell has finished: the smallest number, 1 if nothing is searched."""
        counts: dict[Cell, list[int]] = defaultdict(list)
        for (workload, steps, method, _), trials in self._trials.items():
            if self.tunables(method):
                counts[workload, steps].append(len(trials))
        return {cell: min(counts.get(cell, [1])) for cell in self.cells}

    @cached_property
    def uneven(self) -> dict[Cell, int]:
        """Largest number of trials of a search, in the cells where it is above the budget."""
        most = {cell: 0 for cell in self.cells}
        for (workload, steps, method, _), trials in self._trials.items():
            if self.tunables(method):
                most[workload, steps] = max(most[workload, steps], len(trials))
        return {cell: n for cell, n in most.items() if n > self.budgets[cell]}

    def all_trials(self, cell: Cell, method: str) -> list[Row]:
        """Every row of a method in a cell, including those beyond the budget."""
        return [row for seed in self.seeds for row in self._trials.get((*cell, method, seed), ())]

    def trials(self, cell: Cell, method: str, seed: int) -> list[Row]:
        """The first trials of a search, as many as the budget; they are in the order of the design."""
        return self._trials.get((*cell, method, seed), [])[: self.budgets[cell]]

    def best(self, cell: Cell, method: str) -> dict[int, Row]:
        """The best trial of each seed's search, by final validation loss; the first of equals."""
        searches = {seed: self.trials(cell, method, seed) for seed in self.seeds}
        return {seed: min(t, key=lambda row: row["valid"]) for seed, t in searches.items() if t}

    def mean(self, cell: Cell, method: str) -> float:
        """Mean over seeds of the best final loss; NaN where nothing ran."""
        best = self.best(cell, method)
        return fmean(row["valid"] for row in best.values()) if best else math.nan

    def floor(self, cell: Cell) -> float:
        """Loss below which a cell has no resolution: :data:`RESOLUTION` of the untrained model's."""
        return self._floors.get(cell, 0.0)

    def log(self, cell: Cell, loss: float) -> float:
        """Logarithm of a loss, or of the floor if the loss is below it."""
        return math.log(max(loss, self.floor(cell)))

    def log_ratios(self, cell: Cell, method: str, against: str = REFERENCE) -> dict[int, float]:
        """Logarithm of the best loss over that of another method, by seed; seeds that both have."""
        own, other = self.best(cell, method), self.best(cell, against)
        return {
            seed: self.log(cell, own[seed]["valid"]) - self.log(cell, other[seed]["valid"])
            for seed in self.seeds
            if seed in own and seed in other
        }

    def ratio(self, cell: Cell, method: str, against: str = REFERENCE) -> Interval | None:
        """Geometric mean over seeds of the paired ratios with its interval; None without a common seed."""
        key = cell, method, against
        if key not in self._ratios:
            logs = list(self.log_ratios(*key).values())
            self._ratios[key] = interval([logs]).exp() if logs else None
        return self._ratios[key]

    def difference(self, cell: Cell, method: str) -> Interval | None:
        """Mean over seeds of the paired difference to the reference, in units of the loss."""
        own, other = self.best(cell, method), self.best(cell, REFERENCE)
        pairs = [own[s]["valid"] - other[s]["valid"] for s in self.seeds if s in own and s in other]
        return interval([pairs]) if pairs else None

    def strata(self, method: str, against: str = REFERENCE) -> dict[Cell, list[float]]:
        """Log ratios of a method in every cell that has one."""
        found = {cell: list(self.log_ratios(cell, method, against).values()) for cell in self.cells}
        return {cell: logs for cell, logs in found.items() if logs}

    def target(self, cell: Cell) -> float | None:
        """Target loss: the median over seeds of the reference's best, plus :data:`MARGIN`."""
        best = self.best(cell, REFERENCE)
        if not best:
            return None
        return max(median(row["valid"] for row in best.values()), self.floor(cell)) * (1 + MARGIN)

    def times(self, cell: Cell, method: str, unit: str = "steps") -> dict[int, np.ndarray]:
        """Time to the target of every trial within the budget, by seed; infinity where it is not reached.

        Args:
            cell: workload at a horizon.
            method: by name.
            unit: "steps", or "seconds" of training at the run's mean speed, without validation.
        """
        target, out = self.target(cell), {}
        if target is None:
            return {}
        for seed in self.seeds:
            trials = self.trials(cell, method, seed)
            if trials:
                speed = [row["seconds"] / row["steps"] if unit == "seconds" else 1.0 for row in trials]
                found = [
                    math.inf if row["diverged"] else first_at_or_below(row["curve"], target) for row in trials
                ]
                out[seed] = np.array(found) * np.maximum(speed, 1e-12)
        return out

    def time(self, cell: Cell, method: str, unit: str = "steps") -> float | None:
        """Median over seeds of the fastest trial's time to the target, as AlgoPerf has it."""
        times = self.times(cell, method, unit)
        return median(float(t.min()) for t in times.values()) if times else None

    def clock(self, cell: Cell, method: str) -> float | None:
        """Median over seeds of the expected steps to the target with the whole search on the clock."""
        times = self.times(cell, method)
        return median(on_the_clock(t, cell[1]) for t in times.values()) if times else None

    def time_ratios(self, searching: bool = False) -> dict[str, dict[Cell, float]]:
        """Steps to the target over the fewest of any method, in the cells where a method ran.

        Args:
            searching: with the search on the clock (:meth:`clock`), or the fastest trial alone.
        """
        out: dict[str, dict[Cell, float]] = {method: {} for method in self.methods}
        for cell in self.cells:
            times = {m: self.clock(cell, m) if searching else self.time(cell, m) for m in self.methods}
            known = {m: t for m, t in times.items() if t is not None}
            best = max(min(known.values(), default=math.inf), 1.0)
            for method, t in known.items():
                out[method][cell] = t / best if math.isfinite(best) else math.inf
        return out


def _study(row: Row) -> Study:
    return row["workload"], row["steps"], row["method"], row["seed"]


def _check(rows: Sequence[Row]) -> None:
    if not rows:
        raise ValueError("rows must hold one finished trial at least, got none")
    seen: set[tuple[Study, int]] = set()
    data: dict[Cell, str] = {}
    tunables: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 1):
        for name, kinds in FIELDS.items():
            if name not in row:
                raise ValueError(f"row {number} has no {name!r}; it must hold {', '.join(FIELDS)}")
            if not isinstance(row[name], kinds):
                raise ValueError(f"row {number}: {name} has a value of the wrong type, {row[name]!r}")
        about = f"row {number} ({row['workload']}, {row['method']}, seed {row['seed']}, k {row['k']})"
        if not (math.isfinite(row["valid"]) and math.isfinite(row["initial"])):
            raise ValueError(f"{about}: valid {row['valid']} and initial {row['initial']} must be finite")
        if not row["curve"]:
            raise ValueError(f"{about}: curve must hold one [step, loss] at least, got none")
        if (_study(row), row["k"]) in seen:
            raise ValueError(f"{about} is there twice")
        seen.add((_study(row), row["k"]))
        if data.setdefault((row["workload"], row["steps"]), row["sha256"]) != row["sha256"]:
            raise ValueError(f"{about} is of other data than the rows before, sha256 {row['sha256']}")
        if tunables.setdefault(row["method"], list(row["tunables"])) != list(row["tunables"]):
            raise ValueError(f"{about} tunes {list(row['tunables'])}, rows before {tunables[row['method']]}")
    for name in ("protocol", "tier"):
        values = sorted({row[name] for row in rows})
        if len(values) > 1:
            raise ValueError(f"rows must be of one {name}, got {', '.join(values)}")
