"""Tables of ratios as Markdown: pure functions of rows, and the file they go to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch

from thermoopt.benchmarks.families.cases import CHOSEN_ON, LRS, SEEDS, TUNED, Cell, family
from thermoopt.benchmarks.families.ratios import (
    FLOOR,
    Ratios,
    by_family,
    chosen_lrs,
    leave_family_out,
    ratios,
    reference_rows,
    reported,
    summary,
)
from thermoopt.benchmarks.workloads import FURTHER, HELD_OUT, WORKLOADS

__all__ = ["choice_table", "law_table", "report", "write_report"]

DEVELOPED = "Development workloads"

FURTHER_ABOUT = (
    "These are not held out. The default law's kappa (0.5) and early lead (2) were chosen among variants on "
    "25 of them, and its gates against noise with the results on moving targets and noisy gradients in view. "
    "The deep stacks were added because the law was found to fail on three of them."
)

Rows = Sequence[Mapping[str, Any]]


def law_table(by_told: Mapping[bool, Ratios]) -> str:
    """Return a law's ratios by workload and family, without and with the loss reported."""
    columns = [("loss reported" if told else "no loss", values) for told, values in by_told.items() if values]
    if not columns:
        return "no ratios: the reference has not been run on these workloads and seeds yet"
    cells = list(dict.fromkeys(cell for _, values in columns for cell in values))
    cells.sort(key=lambda cell: family(cell[0]))
    lines = _head(["family", "workload"], [name for name, _ in columns])
    for cell in cells:
        lines.append(_line([family(cell[0]), _named(cell)], [values.get(cell) for _, values in columns]))
    lines += ["", *_head(["family"], [name for name, _ in columns])]
    for name in dict.fromkeys(family(cell[0]) for cell in cells):
        lines.append(_line([name], [by_family(values).get(name) for _, values in columns]))
    short = [(name, summary(values)) for name, values in columns]
    lines += [""] + [
        f"{name}: geometric mean {s.mean:.3f}, worst {s.worst:.2f} ({_named(s.of)})" for name, s in short
    ]
    return "\n".join(lines)


def choice_table(variants: Mapping[str, Ratios], judged_by: Mapping[str, Ratios] | None = None) -> str:
    """Return the variant that the other families choose for each family, and its ratio there.

    Args:
        variants: ratios to choose by; the tables of the variants and of the workloads are of these.
        judged_by: ratios that are reported for the families left out; None is ``variants``.
    """
    chosen, judged = leave_family_out(variants, judged_by)
    lines = _head(["family left out", "chosen on the others"], ["geometric mean", "worst"])
    for name, variant in chosen.items():
        own = [value for cell, value in judged.items() if family(cell[0]) == name]
        lines.append(_line([name, variant], [geometric_mean(own), max(own)]))
    total = summary(judged)
    lines += [
        _line(["**all**", ""], [total.mean, total.worst]),
        "",
        *_head(["variant"], ["geometric mean", "worst"]),
    ]
    for variant, values in variants.items():
        short = summary({cell: values[cell] for cell in judged})
        lines.append(_line([variant], [short.mean, short.worst]))
    lines += ["", *_head(["family", "workload"], list(variants))]
    for cell in judged:
        lines.append(_line([family(cell[0]), _named(cell)], [own[cell] for own in variants.values()]))
    return "\n".join(lines)


def _head(texts: Sequence[str], numbers: Sequence[str]) -> list[str]:
    titles = " | ".join([*texts, *numbers])
    return [f"| {titles} |", "| " + " | ".join(["---"] * len(texts) + ["---:"] * len(numbers)) + " |"]


def _line(texts: Sequence[str], numbers: Sequence[float | None]) -> str:
    shown = ["" if x is None else f"{x:.3f}" if x < 10 else f"{x:.3g}" for x in numbers]
    return "| " + " | ".join([*texts, *shown]) + " |"


def _named(cell: Cell) -> str:
    workload, steps = cell
    short = WORKLOADS[workload].horizons[0]
    return workload if steps == short else f"{workload} x{steps // short}"


def _title(cell: Cell) -> str:
    """Return the section that a cell is shown in."""
    workload, steps = cell
    short = WORKLOADS[workload].horizons[0]
    if workload in HELD_OUT or workload in FURTHER:
        return "Held out" if workload in HELD_OUT else "Further networks"
    return DEVELOPED if steps == short else f"{steps // short} times the horizon"


def report(rows: Rows, commit: str = "") -> str:
    """Return all tables.

    Args:
        rows: of ``rows.jsonl``.
        commit: of the figures on held-out workloads; empty if there are none.
    """
    reference = reference_rows(rows)
    columns: dict[str, Ratios] = {}
    seeds: dict[str, dict[Cell, int]] = {}
    for method, told in dict.fromkeys((row["method"], row["told"]) for row in rows):
        own = reported(rows, method, told)
        both = sum(1 for row in rows if row["method"] == method and row["told"] != told)
        name = method + ((" (loss)" if told else " (no loss)") if both else "")
        columns[name] = ratios(own, reference)
        seeds[name] = {cell: len(set(own[cell]) & set(reference[cell])) for cell in columns[name]}
    titles = {cell: _title(cell) for cell in reference}
    about = {
        "Further networks": FURTHER_ABOUT,
        "Held out": "No constant was chosen on these. Each version of a method is run on them once"
        + (f"; this is commit {commit}." if commit else "."),
    }
    order = (DEVELOPED, *sorted(set(titles.values()) - {DEVELOPED, *about}), *about)
    parts = []
    for title in (title for title in order if title in titles.values()):
        table = _methods_table(columns, seeds, [cell for cell in titles if titles[cell] == title])
        said = f"{about[title]}\n\n" if title in about else ""
        parts.append(f"## {title}\n\n{said}{table}")
    parts.append("## Learning rates chosen\n\n" + _lrs(rows))
    parts.append("## Scores\n\n" + _scores(rows))
    return "\n\n".join(parts) + "\n"


def _methods_table(
    columns: Mapping[str, Ratios], seeds: Mapping[str, Mapping[Cell, int]], cells: Sequence[Cell]
) -> str:
    """Summary of the methods with their numbers of workloads and seeds, then every workload."""
    lines = _head(["method", "worst on"], ["geometric mean", "worst", "workloads", "seeds"])
    ordered = sorted(cells, key=lambda cell: family(cell[0]))
    shown = {}
    for method, values in columns.items():
        own = {cell: values[cell] for cell in ordered if cell in values}
        if own:
            shown[method] = own
            s = summary(own)
            counts = sorted({seeds[method][cell] for cell in own})
            lines.append(
                f"| {method} | {_named(s.of)} | {s.mean:.3f} | {s.worst:.2f} | {len(own)} of {len(cells)} | "
                f"{'/'.join(map(str, counts))} |"
            )
    lines += ["", *_head(["family", "workload"], list(shown))]
    for cell in ordered:
        lines.append(_line([family(cell[0]), _named(cell)], [own.get(cell) for own in shown.values()]))
    return "\n".join(lines)


def _lrs(rows: Rows) -> str:
    tuned = {method: [chosen_lrs(rows, method, seed) for seed in SEEDS] for method in TUNED}
    lines = _head(["workload"], list(tuned))
    for cell in dict.fromkeys(cell for by_seed in tuned.values() for lrs in by_seed for cell in lrs):
        chosen = [sorted({lrs[cell] for lrs in by_seed if cell in lrs}) for by_seed in tuned.values()]
        lines.append(
            "| " + " | ".join([_named(cell), *(", ".join(f"{lr:g}" for lr in c) for c in chosen)]) + " |"
        )
    return "\n".join(lines)


def _scores(rows: Rows) -> str:
    lines = _head(["workload", "metric"], ["untrained", "reference", "half the range over seeds"])
    for cell, by_seed in reference_rows(rows).items():
        scores = [row["score"] for row in by_seed.values()]
        first = next(iter(by_seed.values()))["initial"]
        numbers = f"{first:.4g} | {sum(scores) / len(scores):.4g} | {(max(scores) - min(scores)) / 2:.2g}"
        lines.append(f"| {_named(cell)} | {WORKLOADS[cell[0]].metric} | {numbers} |")
    return "\n".join(lines)


def write_report(out: Path, rows: Rows, commit: str = "") -> None:
    """Write ``families.md`` beside the rows."""
    known = [w for w in WORKLOADS.values() if any(row["workload"] == w.name for row in rows)]
    about = "\n".join(f"- **{w.name}** ({w.family}): {w.about}." for w in known)
    counts = " or ".join(map(str, sorted({len(by_seed) for by_seed in reference_rows(rows).values()})))
    (out / "families.md").write_text(
        "# Methods on workloads of many families\n\n"
        f"{len(rows)} runs with torch {torch.__version__}, one thread per run and float32. Warm-up takes 5 % "
        "of the run and weight decay is 0.01, unless a method's authors say otherwise.\n\n"
        f"- Figures are ratios (score + f)/(reference score + f), where f is {FLOOR:.0%} of the untrained "
        "model's score. Lower is better.\n"
        f"- Scores are means over seeds {', '.join(map(str, SEEDS))}, or over fewer where fewer were run. "
        f"The reference has {counts} seeds. A run that ends above its start is given the untrained model's "
        "score.\n"
        f"- The reference is AdamW with linear-to-zero at the best of {len(LRS)} learning rates. That rate "
        f"is chosen on other seeds than the one reported: on seed {', '.join(map(str, CHOSEN_ON))}, or on "
        "the other reported ones.\n"
        "- *(loss)* and *(no loss)* say whether the training loss was reported to the method. A factor after "
        "the name of a workload, as in mlp x8, is a multiple of its usual number of steps.\n\n"
        "`python -m thermoopt.benchmarks.families report` makes this page from the rows.\n\n"
        f"{report(rows, commit)}\n"
        "## Workloads\n\n"
        f"{about}\n"
    )
    print(f"wrote {out}/families.md")
