"""Tables of final losses: what lost and won, all workloads together, each by itself, best of k, ablations."""

from __future__ import annotations

import math

import numpy as np

from thermoopt.benchmarks.report.outcomes import REFERENCE, Cell, Outcomes, label
from thermoopt.benchmarks.report.stats import Interval, expected_best, interval, iqm
from thermoopt.inspection import Table

__all__ = [
    "MISSING",
    "aggregate",
    "best_of",
    "best_of_table",
    "final_losses",
    "judged",
    "number",
    "parts_table",
    "ranked",
    "searched",
    "with_interval",
]

MISSING = "missing"
"""Shown in cells where nothing has run."""

BUDGETS = (1, 2, 4, 8, 16)
"""Values of k in the table of best of k, besides the largest."""

PARTS = (
    ("replay", "autotune", "another seed's trajectory of scales, without feedback"),
    ("lr only", "autotune", "the law for lr without that for decay"),
    ("per group", "autotune", "a separate rate for every module"),
    ("global", "autotune", "one lr for all layers"),
    ("scheduler adamw autotune", "autotune", "the same laws on torch's AdamW"),
    ("random gain", "respect_lr", "chance in place of the law (a placebo)"),
    ("decay only", REFERENCE, "with the law for decay added"),
    ("monitor", REFERENCE, "with measuring added, without acting"),
    ("monitor native", REFERENCE, "with measuring added, without acting, in the one-pass kernel"),
    ("scheduler adamw", REFERENCE, "the same schedule through ThermoScheduler"),
)
"""Ablations: a method, what it is compared with, and how the two differ."""


def number(value: float | None) -> str:
    """Format a ratio or loss with its significant digits."""
    if value is None or math.isnan(value):
        return ""
    if math.isinf(value):
        return "never"
    return f"{value:.3f}" if 0.1 <= abs(value) < 100 else f"{value:.3g}"


def with_interval(found: Interval | None) -> str:
    """Format an estimate with its interval, if it has one."""
    if found is None:
        return MISSING
    if not found.known:
        return number(found.value)
    return f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"


def searched(outcomes: Outcomes, method: str) -> str:
    """What the search of a method varies, in words."""
    return ", ".join(outcomes.tunables(method)) or "nothing"


def judged(outcomes: Outcomes, lost: bool) -> Table:
    """Methods and workloads whose interval of the ratio to the reference lies wholly above or below 1.

    Args:
        outcomes: of the sweep.
        lost: above 1, the largest first; else below 1, the smallest first.
    """
    found = []
    for cell in outcomes.cells:
        for method in outcomes.methods:
            ratio = outcomes.ratio(cell, method)
            if ratio is None or not ratio.known or method == REFERENCE:
                continue
            if ratio.low > 1 if lost else ratio.high < 1:
                found.append((ratio, cell, method))
    found.sort(key=lambda item: (-item[0].value if lost else item[0].value, item[1:]))
    rows = [
        (
            method,
            label(cell),
            with_interval(ratio),
            number(outcomes.mean(cell, method)),
            number(outcomes.mean(cell, REFERENCE)),
            searched(outcomes, method),
        )
        for ratio, cell, method in found
    ]
    head = ("method", "workload", "ratio [95 %]", "loss", "tuned linear", "searched")
    title = "Lost to tuned linear-to-zero" if lost else "Won against tuned linear-to-zero"
    return Table(f"{title}: {len(rows)}", head, rows, frozenset({0, 1, 5}))


def _mean_log(outcomes: Outcomes, method: str) -> float:
    strata = outcomes.strata(method)
    return float(np.mean([np.mean(logs) for logs in strata.values()])) if strata else math.inf


def ranked(outcomes: Outcomes) -> list[str]:
    """Methods by the geometric mean of their ratios; those that cannot be compared last."""
    return sorted(outcomes.methods, key=lambda method: (_mean_log(outcomes, method), method))


def aggregate(outcomes: Outcomes) -> Table:
    """Interquartile and geometric mean of the ratios over workloads and seeds, worst and best workload."""
    rows = []
    for method in ranked(outcomes):
        strata = outcomes.strata(method)
        if not strata:
            rows.append((method, searched(outcomes, method), MISSING, MISSING, "", "", "", "", ""))
            continue
        logs = list(strata.values())
        means = {cell: math.exp(np.mean(values)) for cell, values in strata.items()}
        worst, best = max(means, key=lambda c: means[c]), min(means, key=lambda c: means[c])
        ratios = [outcomes.ratio(cell, method) for cell in strata]
        known = [ratio for ratio in ratios if ratio is not None and ratio.known]
        won, lost = sum(r.high < 1 for r in known), sum(r.low > 1 for r in known)
        verdict = f"{won} / {lost} / {len(ratios) - won - lost}"
        is_reference = method == REFERENCE
        rows.append(
            (
                method,
                searched(outcomes, method),
                "1" if is_reference else with_interval(interval(logs).exp()),
                "1" if is_reference else with_interval(interval([np.exp(v) for v in logs], iqm)),
                "" if is_reference else f"{number(means[worst])} ({label(worst)})",
                "" if is_reference else f"{number(means[best])} ({label(best)})",
                "" if is_reference else verdict,
                f"{len(strata)} of {len(outcomes.cells)}",
                f"{sum(map(len, logs))} of {len(outcomes.cells) * len(outcomes.seeds)}",
            )
        )
    head = (
        "method",
        "searched",
        "geometric mean [95 %]",
        "IQM [95 %]",
        "worst workload",
        "best workload",
        "won / lost / open",
        "workloads",
        "searches",
    )
    note = "Do not rank a method that has not run on all workloads: it is averaged over those it has run on."
    return Table(
        "Ratio of final losses to tuned linear-to-zero",
        head,
        rows,
        note=note if any(row[-2] != rows[0][-2] or row[2] == MISSING for row in rows) else "",
        left=frozenset({0, 1}),
    )


def final_losses(outcomes: Outcomes, cell: Cell) -> Table:
    """Final validation loss of every method on one workload, with its paired difference and ratio."""
    rows = []
    for method in sorted(outcomes.methods, key=lambda m: (_nan_last(outcomes.mean(cell, m)), m)):
        best = outcomes.best(cell, method)
        trials = [row for seed in best for row in outcomes.trials(cell, method, seed)]
        difference = outcomes.difference(cell, method) if method != REFERENCE else None
        ratio = outcomes.ratio(cell, method) if method != REFERENCE else None
        per_seed = sorted({len(outcomes.trials(cell, method, seed)) for seed in best})
        rows.append(
            (
                method,
                number(outcomes.mean(cell, method)) if best else MISSING,
                "" if method == REFERENCE else with_interval(difference),
                "" if method == REFERENCE else with_interval(ratio),
                f"{len(best)} of {len(outcomes.seeds)}",
                "/".join(map(str, per_seed)),
                f"{sum(row['diverged'] for row in trials)} of {len(trials)}" if trials else "",
                searched(outcomes, method),
            )
        )
    head = ("method", "loss", "difference [95 %]", "ratio [95 %]", "seeds", "best of", "diverged", "searched")
    metric, floor = outcomes.metric(cell), outcomes.floor(cell)
    low = any(row["valid"] < floor for m in outcomes.methods for row in outcomes.best(cell, m).values())
    title = f"{label(cell)}{f', {metric}' if metric else ''}"
    note = f"In ratios, losses below {number(floor)} count as {number(floor)}." if low else ""
    return Table(title, head, rows, frozenset({0, 7}), note)


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def best_of(outcomes: Outcomes, method: str) -> dict[int, float]:
    """Expected best of j trials over the reference's best of all, by j.

    It is the geometric mean over workloads and seeds. The expectation is of the logarithm of the loss over
    all subsets of j of a search's trials; j goes up to the smallest search, 1 where nothing is searched.
    """
    curves = []
    for cell in outcomes.cells:
        reference = outcomes.best(cell, REFERENCE)
        for seed, best in reference.items():
            trials = outcomes.trials(cell, method, seed)
            if trials:
                logs = [outcomes.log(cell, row["valid"]) for row in trials]
                curves.append(expected_best(logs) - outcomes.log(cell, best["valid"]))
    least = min(map(len, curves), default=0)
    return {j + 1: math.exp(np.mean([curve[j] for curve in curves])) for j in range(least)}


def best_of_table(outcomes: Outcomes) -> Table:
    """Expected best of 1, 2, 4, 8, 16 trials of every method."""
    curves = {method: best_of(outcomes, method) for method in outcomes.methods}
    most = max((len(curve) for curve in curves.values()), default=1)
    budgets = sorted({k for k in BUDGETS if k <= most} | {most})
    rows = [
        (method, searched(outcomes, method), *(number(curves[method].get(k)) for k in budgets))
        if curves[method]
        else (method, searched(outcomes, method), *[MISSING] * len(budgets))
        for method in sorted(outcomes.methods, key=lambda m: (min(curves[m].values(), default=math.inf), m))
    ]
    head = ("method", "searched", *(f"best of {k}" for k in budgets))
    return Table("Ratio to tuned linear-to-zero by budget", head, rows, frozenset({0, 1}))


def parts_table(outcomes: Outcomes) -> Table | None:
    """Ratio of every ablation's loss to that of what it alters; None where no such pair has run."""
    rows = []
    for name, against, about in PARTS:
        if name in outcomes.methods and against in outcomes.methods:
            strata = list(outcomes.strata(name, against).values())
            total = with_interval(interval(strata).exp()) if strata else MISSING
            cells = [with_interval(outcomes.ratio(cell, name, against)) for cell in outcomes.cells]
            rows.append((name, against, about, total, *cells))
    head = ("method", "compared with", "what differs", "geometric mean [95 %]", *map(label, outcomes.cells))
    note = (
        "Above 1 is worse than what it is compared with. Both share a seed and are at the best of a search."
    )
    return (
        Table("Final loss over that of what is altered", head, rows, frozenset({0, 1, 2}), note)
        if rows
        else None
    )
