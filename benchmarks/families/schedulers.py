"""autotune outside its main use: over optimizers other than Adam, and without knowing the length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from thermoopt.benchmarks.families.cases import CHOSEN_ON, GRIDS, SEEDS, Case, Cell, family
from thermoopt.benchmarks.families.ratios import FLOOR, Ratios, chosen_lrs, ratios, reported, summary
from thermoopt.benchmarks.families.runs import run_all
from thermoopt.benchmarks.methods import METHODS, SCHEDULED

__all__ = ["COMPARISONS", "SIX", "Comparison", "comparison_table", "run_comparisons", "write_comparisons"]

SIX = ("friedman", "mlp", "cnn", "vae", "gru", "gpt")
"""Workloads of six families on the development side; a run takes seconds."""


@dataclass(frozen=True)
class Comparison:
    """A method and its reference.

    Attributes:
        title: of its column.
        own: method without a learning rate; no loss is reported to it.
        reference: tuned on :data:`CHOSEN_ON` if it has a grid.
        wanted: target, the largest geometric mean that was asked for.
        without: workloads on which it cannot be run.
    """

    title: str
    own: str
    reference: str
    wanted: float
    without: tuple[str, ...] = ()


COMPARISONS = (
    Comparison("SGD with momentum", "scheduler sgd autotune", "sgd linear", 1.1),
    Comparison("Lion", "scheduler lion autotune", "lion linear", 1.1),
    Comparison("Muon and AdamW", "scheduler muon autotune", "muon linear", 1.1, ("cnn",)),  # no hidden matrix
    Comparison("anytime", "autotune anytime", "autotune", 1.05),
)

Rows = Sequence[Mapping[str, Any]]


def run_comparisons(path: Path, cells: Sequence[Cell], seeds: Sequence[int], workers: int) -> list[Any]:
    """Run what is missing: grids on the tuning seed, then both methods of every comparison."""
    rows: list[Any] = []
    for it in COMPARISONS:
        able = [cell for cell in cells if cell[0] not in it.without]
        told = it.reference in GRIDS
        grid = [
            Case(*cell, it.reference, lr, seed, True)
            for seed in CHOSEN_ON
            for cell in able
            for lr in GRIDS.get(it.reference, ())
        ]
        rows = run_all(path, grid, workers)
        todo = []
        for seed in seeds:
            lrs = chosen_lrs(rows, it.reference, seed) if told else {}
            todo += [Case(*cell, it.reference, lrs.get(cell), seed, told) for cell in able]
            todo += [Case(*cell, it.own, None, seed, False) for cell in able]
        rows = run_all(path, todo, workers)
    return rows


def compared(rows: Rows, it: Comparison) -> Ratios:
    """Return the ratios of a comparison over the seeds that both sides have."""
    reference = reported(rows, it.reference, it.reference in GRIDS)
    return ratios(reported(rows, it.own, False), reference)


def comparison_table(rows: Rows) -> str:
    """Return all comparisons: a summary, by workload, and the number of runs that ended above their start."""
    found = {it: values for it in COMPARISONS if (values := compared(rows, it))}
    cells = list(dict.fromkeys(cell for values in found.values() for cell in values))
    lines = [
        "## Summary",
        "",
        "| optimizer | geometric mean | target | worst | worst on | seeds | runs that ended above their "
        "start |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for it, values in found.items():
        s = summary(values)
        own = [row for row in rows if row["method"] == it.own and row["seed"] in SEEDS]
        lost = sum(row["diverged"] for row in own)
        seeds = len({row["seed"] for row in own})
        lines.append(
            f"| {it.title} | {s.mean:.3f} | {it.wanted:g} | {s.worst:.2f} | {s.of[0]} | {seeds} | "
            f"{lost} of {len(own)} |"
        )
    heads = " | ".join(it.title for it in found)
    lines += [
        "",
        "## By workload",
        "",
        f"| family | workload | {heads} |",
        "| --- | --- | " + "---: | " * len(found),
    ]
    for cell in cells:
        own_ratios = " | ".join(f"{v[cell]:.3f}" if cell in v else "" for v in found.values())
        lines.append(f"| {family(cell[0])} | {cell[0]}, {cell[1]} steps | {own_ratios} |")
    tuned = [it for it in found if it.reference in GRIDS]
    heads = " | ".join(it.title for it in tuned)
    lines += [
        "",
        "## Learning rates chosen",
        "",
        f"| workload | {heads} |",
        "| --- | " + "---: | " * len(tuned),
    ]
    for cell in cells:
        chosen = (chosen_lrs(rows, it.reference, SEEDS[0]).get(cell) for it in tuned)
        lines.append(f"| {cell[0]} | " + " | ".join("" if lr is None else f"{lr:g}" for lr in chosen) + " |")
    return "\n".join(lines)


def write_comparisons(out: Path, rows: Rows) -> None:
    """Write ``schedulers.md`` beside the rows."""
    named = METHODS | SCHEDULED
    methods = dict.fromkeys(name for it in COMPARISONS for name in (it.own, it.reference))
    about = "\n".join(f"- **{name}**: {named[name].about}." for name in methods)
    (out / "schedulers.md").write_text(
        "# autotune over other optimizers, and without a length\n\n"
        f"{len(rows)} runs with torch {torch.__version__}, one thread per run, float32, and no loss "
        f"reported. Figures are ratios (score + f)/(reference score + f), where f is {FLOOR:.0%} of the "
        "untrained model's score, and scores are means over seeds. Lower is better.\n\n"
        "- *SGD*, *Lion* and *Muon* compare a ThermoScheduler with autotune(T) with the same optimizer under "
        "warm-up and linear-to-zero, at the best of seven learning rates, chosen on seed "
        f"{', '.join(map(str, CHOSEN_ON))}.\n"
        "- *Anytime* compares autotune(None), told to cool when a fifth of the run is left, with "
        "autotune(T).\n\n"
        "`python -m thermoopt.benchmarks.families schedulers` makes this page.\n\n"
        f"{comparison_table(rows)}\n\n"
        "## Methods\n\n"
        f"{about}\n"
    )
    print(f"wrote {out}/schedulers.md")
