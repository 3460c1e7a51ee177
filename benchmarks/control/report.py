"""Tables of the control benchmark: a pure function of its rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, geometric_mean
from typing import Any

__all__ = ["report", "sensitivity"]

REFERENCE = "adamw linear"
"""Reference of all ratios of final losses: AdamW with linear-to-zero at the best lr of the grid."""

SENSITIVITY_REFERENCE = "adamw cosine"

Rows = Sequence[Mapping[str, Any]]
Cell = tuple[str, int]  # workload, steps
Cells = Mapping[Cell, Mapping[str, Mapping[float | None, Rows]]]  # rows by method and lr


def sensitivity(losses: Mapping[float, float], initial: float) -> float:
    """Learning-rate sensitivity: mean over rates of min(loss, initial loss), less the best; in loss units.

    Args:
        losses: final loss by lr.
        initial: loss of the untrained model.

    References:
        Wortsman et al., arXiv 2309.14322, section 2.2.
    """
    bounded = [min(loss, initial) for loss in losses.values()]
    return fmean(bounded) - min(bounded)


def report(rows: Rows, apart: Sequence[str] = ()) -> str:
    """Return the tables as Markdown.

    Args:
        rows: of ``rows.jsonl``: ``workload``, ``steps``, ``method``, ``lr``, ``seed``, ``valid``,
            ``initial``, ``diverged``.
        apart: workloads that not all methods were run on: marked, and left out of means over all.
    """
    cells = _by_cell(rows)
    return "\n\n".join([_ratios(cells, apart), _sensitivities(cells), _losses(cells)]) + "\n"


def _by_cell(rows: Rows) -> Cells:
    """Sort rows by (workload, steps), short runs first, method and lr."""
    out: dict[Cell, Any] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in sorted(rows, key=lambda r: (r["steps"], r["seed"])):
        out[row["workload"], row["steps"]][row["method"]][row["lr"]].append(row)
    return out


def _means(by_lr: Mapping[float | None, Rows]) -> dict[float | None, float]:
    """Mean final loss over seeds, by lr."""
    return {lr: fmean(row["valid"] for row in rows) for lr, rows in by_lr.items()}


def _seeds(by_lr: Mapping[float | None, Rows]) -> set[int]:
    return {row["seed"] for rows in by_lr.values() for row in rows}


def _ratios(cells: Cells, apart: Sequence[str]) -> str:
    methods = list(dict.fromkeys(method for by_method in cells.values() for method in by_method))
    best = {cell: min(_means(m[REFERENCE]).values()) for cell, m in cells.items() if REFERENCE in m}
    table: list[tuple[str, dict[Cell, float]]] = []
    for method in methods:
        own = {cell: _means(m[method]) for cell, m in cells.items() if method in m and cell in best}
        lrs = list(dict.fromkeys(lr for means in own.values() for lr in means))
        if len(lrs) == 1:
            given = "none" if lrs == [None] else f"its default {lrs[0]:g}"
            table.append((f"{method} | {given}", {c: means[lrs[0]] / best[c] for c, means in own.items()}))
            continue
        table.append(
            (f"{method} | best of {len(lrs)}", {c: min(m.values()) / best[c] for c, m in own.items()})
        )
        if 1e-3 in lrs:
            table.append((f"{method} | 1e-3", {c: means[1e-3] / best[c] for c, means in own.items()}))
    columns = list(best)
    judged = [c for c in columns if c[0] not in apart]
    others = [c for c in columns if c[0] in apart]
    head = [f"{w}{'*' if w in apart else ''} {steps}" for w, steps in columns]
    lines = [
        "| method | lr | geometric mean | worst | apart | " + " | ".join(head) + " |",
        "| --- | --- | ---: | ---: | ---: |" + " ---: |" * len(columns),
    ]
    for name, ratios in table:
        known, other = ([ratios[c] for c in part if c in ratios] for part in (judged, others))
        mean = (
            f"{geometric_mean(known):.3f} | {max(known):.2f}"
            if known and len(known) == len(judged)
            else " | "
        )
        mean += f" | {geometric_mean(other):.3f}" if other and len(other) == len(others) else " | "
        values = " | ".join(f"{ratios[c]:.3f}" if c in ratios else "" for c in columns)
        lines.append(f"| {name} | {mean} | {values} |")
    counts = {len(_seeds(m[REFERENCE])) for c, m in cells.items() if c in best}
    note = (
        f"Final validation loss divided by that of {REFERENCE} at the best learning rate of the grid, as a "
        f"mean over {'/'.join(map(str, sorted(counts)))} seeds. The geometric mean and the worst are over "
        "workloads and horizons."
    )
    if others:
        note += (
            " Workloads marked * were not run with all methods. They are left out of these two columns, and "
            "*apart* is their geometric mean."
        )
    return "## Ratio to the best tuned AdamW\n\n" + note + "\n\n" + "\n".join(lines)


def _sensitivities(cells: Cells) -> str:
    by_method: dict[str, dict[Cell, float]] = defaultdict(dict)
    for cell, methods in cells.items():
        for method, by_lr in methods.items():
            if len(by_lr) > 1:
                initial = fmean(row["initial"] for rows_ in by_lr.values() for row in rows_)
                means = {lr: mean for lr, mean in _means(by_lr).items() if lr is not None}
                by_method[method][cell] = sensitivity(means, initial)
    reference = by_method.get(SENSITIVITY_REFERENCE, {})
    columns = list(reference)
    lines = [
        "| method | ratio | " + " | ".join(f"{w} {steps}" for w, steps in columns) + " |",
        "| --- | ---: |" + " ---: |" * len(columns),
    ]
    for method, values in by_method.items():
        if columns and all(c in values for c in columns):
            ratio = geometric_mean(values[c] / reference[c] for c in columns)
            lines.append(
                f"| {method} | {ratio:.2f} | " + " | ".join(f"{values[c]:.3f}" for c in columns) + " |"
            )
    return (
        "## Sensitivity to the learning rate\n\nThe mean of min(loss, initial loss) over the learning rates "
        "of the grid, minus the method's best loss (Wortsman et al., arXiv 2309.14322). *Ratio* is the "
        f"geometric mean relative to {SENSITIVITY_REFERENCE}.\n\n" + "\n".join(lines)
    )


def _losses(cells: Cells) -> str:
    parts = [
        "## All losses\n\nMeans over seeds ± half their range. `d` is followed by the number of seeds that "
        "diverged."
    ]
    for (workload, steps), methods in cells.items():
        lrs = sorted({lr for by_lr in methods.values() for lr in by_lr if lr is not None})
        lines = [
            f"### {workload}, {steps} steps\n",
            "| method | no lr | " + " | ".join(f"{lr:g}" for lr in lrs) + " |",
            "| --- | ---: |" + " ---: |" * len(lrs),
        ]
        for method, by_lr in methods.items():
            row = [_cell(by_lr[lr]) if lr in by_lr else "" for lr in (None, *lrs)]
            lines.append(f"| {method} | " + " | ".join(row) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(rows: Rows) -> str:
    values = [row["valid"] for row in rows]
    lost = sum(row["diverged"] for row in rows)
    text = f"{fmean(values):.4g}"
    if len(values) > 1:
        text += f" ± {(max(values) - min(values)) / 2:.2g}"
    return text + (f" d{lost}" if lost else "")
