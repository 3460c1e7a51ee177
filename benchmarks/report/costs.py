"""Tables of a method's cost: time to a target, search, sensitivity, failures, step time, memory."""

from __future__ import annotations

import math
from statistics import fmean, median

import numpy as np

from thermoopt.benchmarks.control.report import sensitivity
from thermoopt.benchmarks.report.outcomes import REFERENCE, Cell, Outcomes, label
from thermoopt.benchmarks.report.stats import LIMIT, profile_score
from thermoopt.benchmarks.report.tables import MISSING, number, searched
from thermoopt.inspection import Table

__all__ = [
    "EDGE",
    "clock_table",
    "edges_table",
    "failures_table",
    "missing_table",
    "overhead_table",
    "score_table",
    "sensitivity_table",
    "times_table",
]

EDGE = 0.1
"""Outer share of a range, on its log scale, that counts as its edge: by chance it has a fifth of optima."""


def _scores(outcomes: Outcomes, searching: bool) -> list[tuple[str, float, dict[Cell, float]]]:
    """Methods by AlgoPerf's score, with their ratios; a workload that a method has not run is a miss."""
    scored = []
    for method, ratios in outcomes.time_ratios(searching).items():
        all_cells = [ratios.get(cell, math.inf) for cell in outcomes.cells]
        scored.append((method, profile_score(all_cells) if ratios else math.nan, ratios))
    return sorted(scored, key=lambda item: (math.isnan(item[1]), -item[1], item[0]))


def score_table(outcomes: Outcomes) -> Table:
    """AlgoPerf's score for external tuning: steps to the target of the fastest trial of each search."""
    rows = [
        (
            method,
            searched(outcomes, method),
            MISSING if math.isnan(score) else f"{score:.3f}",
            f"{sum(map(math.isfinite, ratios.values()))} of {len(outcomes.cells)}",
            *(number(ratios[cell]) if cell in ratios else MISSING for cell in outcomes.cells),
        )
        for method, score, ratios in _scores(outcomes, searching=False)
    ]
    head = ("method", "searched", "score", "reached", *map(label, outcomes.cells))
    note = (
        f"By workload: steps to the target over the fewest of any method. Beyond {LIMIT:g}, the score is 0."
    )
    return Table("External tuning: the fastest trial of each search", head, rows, frozenset({0, 1}), note)


def clock_table(outcomes: Outcomes) -> Table:
    """The same with the search on the clock; methods that need no lr first."""
    rows = []
    for method, score, ratios in _scores(outcomes, searching=True):
        clocks = [outcomes.clock(cell, method) for cell in outcomes.cells]
        tunes_lr = "lr" in outcomes.tunables(method)
        cells = (MISSING if t is None else "never" if math.isinf(t) else f"{t:.0f}" for t in clocks)
        row = (
            method,
            "searched" if tunes_lr else "none" if ratios else "",
            MISSING if math.isnan(score) else f"{score:.3f}",
            f"{sum(map(math.isfinite, ratios.values()))} of {len(outcomes.cells)}",
            *cells,
        )
        rows.append((tunes_lr, row))
    rows.sort(key=lambda item: item[0])
    head = ("method", "lr", "score", "reached", *(f"{label(cell)}, steps" for cell in outcomes.cells))
    return Table(
        "Self-tuning: everything on the clock, methods without an lr first",
        head,
        [row for _, row in rows],
        frozenset({0, 1}),
        "The expected number of steps to the target if the runs of a search follow each other in random "
        "order until one reaches it. A method that searches nothing runs once.",
    )


def times_table(outcomes: Outcomes) -> Table:
    """Steps and seconds to the target by workload."""

    def cell_text(cell: Cell, method: str) -> str:
        steps, seconds = (outcomes.time(cell, method, unit) for unit in ("steps", "seconds"))
        if steps is None or seconds is None:
            return MISSING
        if math.isinf(steps):
            times = [float(t.min()) for t in outcomes.times(cell, method).values()]
            hits = sum(map(math.isfinite, times))
            return f"never ({hits} of {len(times)} seeds)" if hits else "never"
        return f"{steps:.0f} ({seconds:.3g} s)"

    rows = [(method, *(cell_text(cell, method) for cell in outcomes.cells)) for method in outcomes.methods]
    targets = [outcomes.target(cell) for cell in outcomes.cells]
    head = tuple(
        f"{label(cell)} ≤ {number(target)}" if target is not None else label(cell)
        for cell, target in zip(outcomes.cells, targets, strict=True)
    )
    note = "Medians over seeds. Seconds are of training, without validation; workers share the machine."
    return Table("Steps (seconds) to the target, fastest trial", ("method", *head), rows, note=note)


def sensitivity_table(outcomes: Outcomes) -> Table:
    """Sensitivity to the lr of methods that take one, in units of each loss, and against the reference."""
    found: dict[str, dict[Cell, float]] = {}
    for method in outcomes.methods:
        if "lr" not in outcomes.tunables(method):
            continue
        for cell in outcomes.cells:
            by_seed = [
                sensitivity({row["lr"]: row["valid"] for row in trials}, trials[0]["initial"])
                for seed in outcomes.seeds
                if len(trials := outcomes.trials(cell, method, seed)) > 1
            ]
            if by_seed:
                found.setdefault(method, {})[cell] = fmean(by_seed)
    reference = found.get(REFERENCE, {})
    rows = []
    for method, values in found.items():
        common = [cell for cell in values if reference.get(cell, 0) > 0 and values[cell] > 0]
        logs = [math.log(values[cell] / reference[cell]) for cell in common]
        complete = logs and len(common) == len(outcomes.cells)
        ratio = math.exp(fmean(logs)) if complete else None
        rows.append(
            (method, number(ratio), *(number(values[c]) if c in values else MISSING for c in outcomes.cells))
        )
    head = ("method", f"over {REFERENCE}", *map(label, outcomes.cells))
    return Table("Sensitivity to the learning rate", head, rows)


def edges_table(outcomes: Outcomes) -> Table:
    """Searches whose optimum lies at one edge of the space for more than half of the seeds."""
    rows = []
    for cell in outcomes.cells:
        for name in ("lr", "decay"):
            drawn = [
                row[name]
                for method in outcomes.methods
                for row in outcomes.all_trials(cell, method)
                if name in row["tunables"] and row[name] is not None and row[name] > 0
            ]
            if not drawn or min(drawn) == max(drawn):
                continue
            low, high = math.log(min(drawn)), math.log(max(drawn))
            for method in outcomes.methods:
                values = [
                    row[name]
                    for row in outcomes.best(cell, method).values()
                    if name in row["tunables"] and row[name] is not None and row[name] > 0
                ]
                where = (np.log(values) - low) / (high - low)
                for side, hits in (("low", where <= EDGE), ("high", where >= 1 - EDGE)):
                    if hits.sum() * 2 > len(values):
                        shown = ", ".join(f"{value:.3g}" for value in sorted(values))
                        span = f"{min(drawn):.3g} to {max(drawn):.3g}"
                        count = f"{hits.sum()} of {len(values)}"
                        rows.append((method, label(cell), name, side, count, shown, span))
    head = ("method", "workload", "searched", "edge", "seeds", "optima", "range drawn")
    return Table("Optima at an edge of the space", head, rows, frozenset({0, 1, 2, 3}))


def failures_table(outcomes: Outcomes) -> Table:
    """Share of trials that diverged, and number of trials repeated after their worker died."""
    rows = []
    for method in outcomes.methods:
        cells = []
        for cell in outcomes.cells:
            trials = outcomes.all_trials(cell, method)
            lost = sum(row["diverged"] for row in trials)
            cells.append(f"{lost} of {len(trials)}" if trials else MISSING)
        every = [row for cell in outcomes.cells for row in outcomes.all_trials(cell, method)]
        lost = sum(row["diverged"] for row in every)
        share = f"{100 * lost / len(every):.1f} %" if every else MISSING
        again = str(sum(row["retried"] for row in every)) if every else ""
        rows.append((method, share, again, *cells))
    head = ("method", "diverged", "run again", *map(label, outcomes.cells))
    return Table("Diverged runs", head, rows)


def overhead_table(outcomes: Outcomes) -> Table:
    """Median time of an optimizer step over the reference's, and the largest memory of a worker."""

    def step(cell: Cell, method: str) -> float | None:
        times = [row["step_ms"] for row in outcomes.all_trials(cell, method) if row["step_ms"] > 0]
        return median(times) if times else None

    rows = []
    for method in outcomes.methods:
        ratios = {}
        for cell in outcomes.cells:
            own, reference = step(cell, method), step(cell, REFERENCE)
            if own is not None and reference is not None:
                ratios[cell] = own / reference
        peak = [row["peak_mb"] for cell in outcomes.cells for row in outcomes.all_trials(cell, method)]
        mean = math.exp(fmean(map(math.log, ratios.values()))) if ratios else None
        rows.append(
            (
                method,
                MISSING if mean is None else f"{mean:.2f}",
                f"{max(peak):.0f}" if peak else "",
                *(f"{ratios[c]:.2f}" if c in ratios else MISSING for c in outcomes.cells),
            )
        )
    head = ("method", "step time", "peak MB", *map(label, outcomes.cells))
    return Table(f"Optimizer step over that of {REFERENCE}, and memory of a worker", head, rows)


def missing_table(outcomes: Outcomes) -> Table:
    """Searches without a finished trial."""
    seeds: dict[tuple[str, Cell], list[int]] = {}
    for workload, steps, method, seed in outcomes.missing:
        seeds.setdefault((method, (workload, steps)), []).append(seed)
    rows = [
        (method, label(cell), ", ".join(map(str, absent)), f"{len(absent)} of {len(outcomes.seeds)}")
        for (method, cell), absent in sorted(seeds.items())
    ]
    return Table("Missing searches", ("method", "workload", "seeds", "missing"), rows, frozenset({0, 1, 2}))
