"""``thermoopt inspect`` of several runs: one table, one picture, the findings of each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thermoopt.controllers import Action
from thermoopt.diagnosis import DiagnosticReport
from thermoopt.inspection.tables import Table, course
from thermoopt.plots import ComparedRun, LossCurve
from thermoopt.record import SavedRun

__all__ = ["InspectedRun", "compared", "findings_table", "records_in", "runs_table", "short_names"]

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
"""Endings of record files."""

PARTS = (".layers.", ".journal.")
"""Parts of the names of files that belong to a record and are read with it."""

COURSE = 12
TAIL = 50
"""A run's final loss is the mean of its last losses, one in ``TAIL`` of all, as in the smoothed pictures."""


@dataclass(frozen=True)
class InspectedRun:
    """A run shown next to others.

    Attributes:
        name: distinguishes it from the others.
        run: its record.
        report: its diagnosis.
        losses: from the record, or from the table next to a run of the demo.
        actions: of its controller.
    """

    name: str
    run: SavedRun
    report: DiagnosticReport
    losses: LossCurve
    actions: Sequence[Action] = ()


def records_in(folder: Path) -> list[Path]:
    """Files in a folder and its subfolders that may be records; none is opened."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.name.endswith(ENDINGS)
        and not any(part in path.name for part in PARTS)
        and path.name != "actions.jsonl"
        and path.is_file()
    )


def short_names(paths: Sequence[Path]) -> list[str]:
    """Shorten the names of files: common folders and endings are left out."""
    parts = [list(path.parts) for path in paths]
    while len(parts) > 1 and all(len(p) > 1 and p[0] == parts[0][0] for p in parts):
        parts = [p[1:] for p in parts]
    if all(len(p) > 1 for p in parts) and len({p[-1] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    names = ["/".join(p) for p in parts]
    bare = [name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".parquet") for name in names]
    return bare if len(set(bare)) == len(bare) else names


def runs_table(runs: Sequence[InspectedRun]) -> Table:
    """One row per run: its steps, loss, rates, r, and the number of findings."""
    rows = []
    for one in runs:
        history = one.run.history
        loss = np.asarray(one.losses.train or one.losses.valid, dtype=float)
        tail = loss[-max(1, len(loss) // TAIL) :]
        rows.append(
            (
                one.name,
                f"{one.run.steps}",
                _number(float(np.mean(tail)) if len(tail) else math.nan, ".4g"),
                course(loss, COURSE),
                _number(one.losses.valid[-1] if one.losses.valid else math.nan, ".4g"),
                *_last(history.total("lr_eff"), ".1e"),
                *_last(history.total("r"), ".2f"),
                *_last(history.total("sigma"), "+.1e"),
                _counted(one.report),
                f"{len(one.actions)}" if one.actions else "-",
            )
        )
    head: tuple[str, ...] = ("run", "steps", "loss", "trend of loss", "valid", "rate", "trend of rate")
    head += ("r", "trend of r", "σ", "trend of σ", "findings", "actions")
    note = (
        f"loss: mean of the last {100 // TAIL} % of training losses; findings: numbers of HIGH, MEDIUM, LOW"
    )
    return Table("Runs", head, rows, frozenset({0, 3, 6, 8, 10}), note)


def findings_table(runs: Sequence[InspectedRun]) -> Table:
    """One row per finding."""
    rows = [
        (one.name, f.confidence, f.kind.replace("_", " "), f.message)
        for one in runs
        for f in one.report.findings
    ]
    return Table("Findings", ("run", "confidence", "kind", "measured"), rows, frozenset({0, 1, 2, 3}))


def compared(runs: Sequence[InspectedRun]) -> Iterator[ComparedRun]:
    """Yield runs in the form that the picture takes."""
    for one in runs:
        names = one.run.history.group_names
        yield ComparedRun(one.name, one.run.history, one.losses, one.actions, names if len(names) > 1 else ())


def _last(values: np.ndarray, form: str) -> tuple[str, str]:
    known = values[np.isfinite(values)]
    return _number(float(known[-1]) if len(known) else math.nan, form), course(values, COURSE)


def _counted(report: DiagnosticReport) -> str:
    counts = [sum(f.confidence == c for f in report.findings) for c in ("HIGH", "MEDIUM", "LOW")]
    return "none" if not any(counts) else " ".join(map(str, counts))


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
