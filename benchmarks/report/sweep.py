"""The report of a sweep: a pure function of the table of its results.

The same table gives the same bytes, whatever the order of its rows: nothing depends on the time, and the
bootstrap always draws the same samples. The only date is that of ``environment``, if it has one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from thermoopt.benchmarks.report import costs as costs
from thermoopt.benchmarks.report import tables as losses
from thermoopt.benchmarks.report.figures import draw
from thermoopt.benchmarks.report.outcomes import MARGIN, REFERENCE, RESOLUTION, Outcomes, Row, Study, label
from thermoopt.benchmarks.report.page import Section, html, markdown
from thermoopt.benchmarks.report.stats import CONFIDENCE, LIMIT
from thermoopt.inspection import Picture, Table

__all__ = ["write_report"]


def write_report(
    rows: Sequence[Row],
    out: str | Path,
    *,
    environment: Mapping[str, Any] | None = None,
    planned: Collection[Study] | None = None,
) -> Path:
    """Write ``report.md``, ``report.html`` and ``figures/*.png`` and ``*.svg``.

    Args:
        rows: one per finished trial, in any order.
        out: folder, made if missing.
        environment: what the sweep ran on; printed as it is.
        planned: every (workload, steps, method, seed) of the protocol; None for all combinations of those
            that occur, which cannot know of a workload or method that has not been begun.

    Returns:
        The path of ``report.md``.

    Raises:
        ValueError: the rows cannot be compared (:class:`~.outcomes.Outcomes`); nothing
            was written.
        ImportError: matplotlib or scipy is missing.
    """
    outcomes = Outcomes(rows, planned)
    out = Path(out)
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    pictures = draw(outcomes, figures)
    title = f"Benchmark report: tier {outcomes.rows[0]['tier']}"
    about = _about(outcomes)
    sections = _sections(outcomes, pictures, environment)
    path = out / "report.md"
    path.write_text(markdown(title, about, sections, out), encoding="utf-8")
    (out / "report.html").write_text(html(title, about, sections), encoding="utf-8")
    return path


def _about(outcomes: Outcomes) -> list[str]:
    budgets = _range(outcomes.budgets.values())
    lines = [
        f"{len(outcomes.rows)} finished trials: {_count(len(outcomes.methods), 'method')} on "
        f"{_count(len(outcomes.cells), 'workload')} (each horizon counts as one) with "
        f"{_count(len(outcomes.seeds), 'seed')}. Where anything is searched, the best of {budgets} points "
        "counts. "
        f"Protocol {outcomes.rows[0]['protocol'][:12]}."
    ]
    if outcomes.missing:
        lines.append(
            f"This sweep is incomplete: {_count(len(outcomes.missing), 'search', 'searches')} of "
            f"{len(outcomes.missing) + outcomes.searches} are missing; they are listed under Coverage."
        )
    if outcomes.uneven:
        lines.append(f"Budgets differ on {', '.join(map(label, outcomes.uneven))}: see Coverage.")
    return lines


def _sections(
    outcomes: Outcomes, pictures: Mapping[str, Picture], environment: Mapping[str, Any] | None
) -> list[Section]:
    parts = losses.parts_table(outcomes)
    edges = costs.edges_table(outcomes)
    return [
        Section(
            "What lost, and what won",
            [_verdict(outcomes), losses.judged(outcomes, lost=True), losses.judged(outcomes, lost=False)],
        ),
        Section("All workloads together", [_TOGETHER, losses.aggregate(outcomes), pictures["ratios"]]),
        Section(
            "Final validation loss",
            [_FINAL, *(losses.final_losses(outcomes, cell) for cell in outcomes.cells), pictures["curves"]],
        ),
        Section(
            "Time to the target",
            [
                _TIME.format(_validations(outcomes)),
                costs.score_table(outcomes),
                pictures["profiles"],
                costs.times_table(outcomes),
            ],
        ),
        Section("Self-tuning", [_CLOCK, costs.clock_table(outcomes)]),
        Section("Best of k", [_BEST, losses.best_of_table(outcomes), pictures["best_of_k"]]),
        Section(
            "Sensitivity to the learning rate",
            [_SENSITIVITY, costs.sensitivity_table(outcomes), pictures["sensitivity"], _EDGES, edges],
        ),
        Section("Ablations", [parts or "No method is part of this sweep together with what it alters."]),
        Section("Failures", [_FAILURES, costs.failures_table(outcomes)]),
        Section("Overhead and memory", [_OVERHEAD, costs.overhead_table(outcomes)]),
        Section("Coverage", [_coverage(outcomes), costs.missing_table(outcomes)]),
        Section("Environment", _environment(outcomes, environment)),
    ]


def _verdict(outcomes: Outcomes) -> str:
    others = [method for method in outcomes.methods if method != REFERENCE]
    if REFERENCE not in {row["method"] for row in outcomes.rows}:
        return f"No trial of {REFERENCE}, which everything is compared with, has finished: no ratio is known."
    ratios = [outcomes.ratio(cell, method) for cell in outcomes.cells for method in others]
    known = [ratio for ratio in ratios if ratio is not None and ratio.known]
    lost, won = sum(ratio.low > 1 for ratio in known), sum(ratio.high < 1 for ratio in known)
    absent = sum(ratio is None for ratio in ratios)
    text = (
        f"The ratio is the best final validation loss over that of {REFERENCE}, paired by seed, as geometric "
        f"mean over seeds. A method has lost (won) on a workload if the whole {CONFIDENCE * 100:.0f} % "
        f"bootstrap interval is above (below) 1. Of {len(ratios)} pairs of method and workload, {lost} lost, "
        f"{won} won, {len(known) - lost - won} are open, {len(ratios) - len(known) - absent} have one seed "
        f"and no interval, and {absent} have not run."
    )
    text += f" Tuned means the best of {_range(outcomes.budgets.values())} points of its space."
    edges = [row[1] for row in costs.edges_table(outcomes).rows if row[0] == REFERENCE and row[2] == "lr"]
    if edges:
        text += (
            f" On {', '.join(edges)}, the best lr of {REFERENCE} lies at an edge of the space. A wider space "
            "might have served it better, and what won there may have won for that reason."
        )
    seeds = len(outcomes.seeds)
    if not known:
        text += " Nothing can be judged; the next section has estimates."
    if seeds > 1 and known:
        text += (
            f" A bootstrap of {seeds} seeds is no wider than their range. It holds the median of a method's "
            f"ratio in at most {100 - 100 * 2.0 ** (1 - seeds):.0f} % of cases, so by chance a method that "
            f"differs in nothing is listed as lost on at least one in {2**seeds} workloads, and likewise as "
            "won."
        )
    return text


_TOGETHER = (
    f"A ratio below 1 is better than {REFERENCE} at the best of its search. Losses below {RESOLUTION:g} of "
    "the untrained model's are raised to that floor before ratios are taken. Only losses over a known "
    "optimum come near it, and below it they are rounding. The geometric mean averages differences of "
    "logarithms, so one loss near 0 can dominate it. The interquartile mean (IQM) leaves out the best and "
    "the worst quarter of workloads × seeds. Intervals are from a stratified bootstrap: seeds are resampled "
    "within each workload, and workloads are taken as given."
)
_FINAL = (
    "Of every seed's search, the trial with the lowest final validation loss counts, with that same loss. "
    "This favours what is searched over what is not. The difference from tuned linear-to-zero and the ratio "
    "to it are paired by seed: the data, the start and the design points are the same. The loss is a mean "
    "over seeds, and diverged counts trials within the budget. The picture shows medians over seeds; the "
    "dotted line is the target of the next section."
)
_TIME = (
    f"The target of a workload is the median over seeds of {REFERENCE}'s best final loss, plus "
    f"{MARGIN * 100:.0f} %, which is what chance alone moves. The time is the first step at which the "
    "validation loss, taken {} times per run, is at or below the target, for the fastest trial of each "
    "search, as median over seeds. A run that diverges later has not reached it. The score is that of "
    "AlgoPerf: the area under the share of workloads within τ of the fastest method, for τ from 1 to "
    f"{LIMIT:g}, over its largest value. 1 means fastest everywhere, 0 never within that limit."
)
_CLOCK = (
    "This is the rule set for methods that need no search for the lr. Tuned methods follow, with all trials "
    "of their search on the clock: that is what finding their lr costs on a new task."
)
_BEST = (
    "The expected best of k trials of each search over the best of all trials of tuned linear-to-zero. The "
    "expectation is of the logarithm of the loss and exact over all subsets of k trials, so the order in "
    "which trials ran does not matter. That holds for points drawn beforehand; those of a sampler that "
    "learns from earlier trials are not alike."
)
_SENSITIVITY = (
    "The mean over a search's learning rates of min(final loss, initial loss), minus the best (Wortsman et "
    "al., arXiv 2309.14322), as a mean over seeds, in units of the loss. The ratio is a geometric mean over "
    "workloads. Where decay is searched as well, it varies along with lr. In the picture, losses are capped "
    "at that of the untrained model (dotted)."
)
_EDGES = (
    f"The table lists optima in the outer {costs.EDGE * 100:.0f} % of the range drawn, on a log scale, for "
    "more than half of the seeds. There, the search may have needed a wider range; with few points it is "
    "often chance."
)
_FAILURES = (
    "A run that diverged stays in, with the loss of the untrained model as its result. All trials are "
    "counted here, including those beyond the common budget."
)
_OVERHEAD = (
    "The median time of an optimizer step, controller included, over that of the reference on the same "
    "workload. Small models make it look large. Memory is the most that a worker had held when its run "
    "ended, including in its earlier runs."
)


def _validations(outcomes: Outcomes) -> str:
    """Number of validations of a run after its start."""
    return _range({len(row["curve"]) - 1 for row in outcomes.rows if not row["diverged"]} or {0})


def _coverage(outcomes: Outcomes) -> str:
    text = (
        "Every search is cut to its first trials in the order of the design, as many as the shortest "
        "search on that workload has finished: "
        + ", ".join(f"{label(cell)}: {budget}" for cell, budget in outcomes.budgets.items())
        + "."
    )
    if outcomes.uneven:
        more = ", ".join(f"{label(cell)}: up to {most}" for cell, most in outcomes.uneven.items())
        text += f" Some searches have finished more, which is left out of every comparison: {more}."
    return text


def _environment(outcomes: Outcomes, environment: Mapping[str, Any] | None) -> list[str | Table]:
    data = sorted({(row["workload"], row["sha256"]) for row in outcomes.rows})
    rows = [("protocol", outcomes.rows[0]["protocol"]), *((f"data of {name}", sha) for name, sha in data)]
    for key, value in sorted((environment or {}).items()):
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
        rows.append((str(key), text))
    missing = [] if environment else ["The environment was not recorded."]
    return [*missing, Table("Protocol, data and machine", ("what", "value"), rows, frozenset({0, 1}))]


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _range(values: Collection[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
