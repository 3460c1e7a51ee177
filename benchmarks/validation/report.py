"""Tables of a validation: a pure function of its rows."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

__all__ = ["report"]

Row = dict[str, Any]

TIER2 = {
    "learning_rate_too_high": "lr x 100, constant",
    "weight_decay_collapse": "decay takes 0.03 of weights a step",
    "momentum_overdamped": "beta1 0.999",
    "healthy": "lr x 1, constant",
}
"""The runs of tier 2, by the kind of finding they should have."""

TIER2_ON = ("gpt", "digits")

SAME = ({"learning_rate_too_high", "learning_rate_runaway"},)
"""Kinds that describe the same problem, here a rate that is far too high: one counts as the finding of the
other."""


def report(rows: Sequence[Row], held_out: Collection[str]) -> str:
    """Return the tables as Markdown.

    Args:
        rows: of :mod:`validation`.
        held_out: workloads on which no threshold was set.
    """
    judged = [row for row in rows if "found" in row]
    healthy = [row for row in judged if row["kind"] == "healthy"]
    sick = [row for row in judged if row["kind"] != "healthy"]
    parts = [
        "# Validation of the diagnosis",
        "Thresholds were set on seed 0 of gpt, gru, cnn, mlp, digits and linear. The runs judged here have "
        f"other seeds, or are of {' and '.join(sorted(held_out))}, on which nothing was set. Each run is "
        "diagnosed eight times, and counts as alarmed if any of the eight raises an alarm. thermoclaw is "
        "asked once, at the end. `make bench-validation` makes this page.",
        _commits(judged),
        "## False alarms on healthy runs",
        _false_alarms(healthy, held_out),
        _by_kind(healthy),
        "## Sick runs",
        _misses(sick),
        *_recorded(healthy, sick),
        "## Tier 2: sick runs of a transformer and a convolution net",
        _tier2(judged),
        "## Tier 3: weight decay too high, with and without the advice",
        _tier3([row for row in rows if "branch" in row]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _alarmed(row: Row, confidence: str, source: str = "found") -> bool:
    return any(found[0] == confidence for found in row[source].values())


def _peer_alarmed(row: Row, confidence: str) -> bool:
    return any(text.startswith(f"[{confidence}]") for text in row["thermoclaw"])


def _commits(judged: Sequence[Row]) -> str:
    """Return the commits that the rows come from; older rows do not record it."""
    counts = Counter(row["commit"] for row in judged if "commit" in row)
    words = ", ".join(f"{count} from {commit}" for commit, count in counts.most_common())
    return f"Rows by commit: {words}." if counts else ""


def _same(kind: str) -> set[str]:
    """Kinds that count as this one."""
    return next((kinds for kinds in SAME if kind in kinds), {kind})


def _own(row: Row, source: str = "found") -> tuple[str, int] | None:
    """Best confidence and first step of the finding that a sick run should have, or None."""
    found = [row[source][kind] for kind in _same(row["kind"]) if kind in row[source]]
    if not found:
        return None
    return min(confidence for confidence, _ in found), min(step for _, step in found)  # HIGH before MEDIUM


def _other(row: Row, source: str = "found") -> bool:
    """Whether a sick run had a finding of another kind."""
    return not _same(row["kind"]).issuperset(row[source])


def _share(rows: Sequence[Row], hits: int) -> str:
    return f"{hits} of {len(rows)} ({hits / len(rows):.1%})" if rows else "none ran"


def _false_alarms(healthy: Sequence[Row], held_out: Collection[str]) -> str:
    known = [row for row in healthy if row["workload"] not in held_out]
    new = [row for row in healthy if row["workload"] in held_out]
    lines = ["| healthy runs | runs | any HIGH | any MEDIUM |", "| --- | ---: | ---: | ---: |"]
    for name, part in (("all", healthy), ("development workloads", known), ("held-out workloads", new)):
        cells = [_share(part, sum(_alarmed(row, c) for row in part)) for c in ("HIGH", "MEDIUM")]
        lines.append(f"| thermoopt, {name} | {len(part)} | {cells[0]} | {cells[1]} |")
    compared = [row for row in healthy if row["thermoclaw"] is not None]
    if compared:
        cells = [_share(compared, sum(_peer_alarmed(row, c) for row in compared)) for c in ("HIGH", "MEDIUM")]
        lines.append(f"| thermoclaw 0.1.6, the same runs | {len(compared)} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def _by_kind(healthy: Sequence[Row]) -> str:
    """False alarms by kind, with the runs that had them."""
    kinds = sorted({kind for row in healthy for kind in row["found"]})
    if not kinds:
        return "No healthy run had a finding of HIGH or MEDIUM confidence."
    lines = ["| false alarm | HIGH | MEDIUM | runs |", "| --- | ---: | ---: | --- |"]
    for kind in kinds:
        with_it = [row for row in healthy if kind in row["found"]]
        counts = [sum(row["found"][kind][0] == c for row in with_it) for c in ("HIGH", "MEDIUM")]
        runs = "; ".join(f"{row['workload']} {row['what']} (seed {row['seed']})" for row in with_it[:6])
        lines.append(f"| {kind} | {counts[0]} | {counts[1]} | {runs} |")
    return "\n".join(lines)


def _misses(sick: Sequence[Row]) -> str:
    if not sick:
        return "No sick run was judged."
    lines = [
        "- *Found* counts the runs with the finding that they should have, at HIGH or MEDIUM.\n"
        "- *Other* counts the runs that also had another finding.\n"
        "- *First* is the median step at which the finding came. It is looked for at every eighth of a run.\n"
        "- *thermoclaw* counts the runs with any HIGH or MEDIUM recommendation.\n"
        f"- {'; '.join(' and '.join(sorted(kinds)) for kinds in SAME)} are one disease, so either counts as "
        "the finding for the other.",
        "",
        "| kind | runs | found | HIGH | missed | other | first | thermoclaw |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind in [*sorted({row["kind"] for row in sick}), "all"]:
        part = [row for row in sick if kind in (row["kind"], "all")]
        own = [found for row in part if (found := _own(row)) is not None]
        high = sum(confidence == "HIGH" for confidence, _ in own)
        other = sum(_other(row) for row in part)
        first = f"{statistics.median(step for _, step in own):.0f}" if own else "-"
        compared = [row for row in part if row["thermoclaw"] is not None]
        peer = sum(_peer_alarmed(row, "HIGH") or _peer_alarmed(row, "MEDIUM") for row in compared)
        missed = len(part) - len(own)
        said = f"{peer} of {len(compared)}" if compared else "not run"
        share = f"{missed} ({missed / len(part):.0%})"
        lines.append(f"| {kind} | {len(part)} | {len(own)} | {high} | {share} | {other} | {first} | {said} |")
    missed_runs = [row for row in sick if _own(row) is None]
    if missed_runs:
        lines += ["", "Missed:", "", *(f"- {_about(row)}" for row in missed_runs)]
    return "\n".join(lines)


def _recorded(healthy: Sequence[Row], sick: Sequence[Row]) -> list[str]:
    """The same runs diagnosed from their records, beside the full history."""
    healthy, sick = ([row for row in part if row.get("recorded") is not None] for part in (healthy, sick))
    if not healthy + sick:
        return []
    lines = [
        "Some of the runs above were also diagnosed from the record that `JSONLSink` had written by then, at "
        "the same eight steps as from the history in memory. The record's rows of layers were thinned to 8 "
        "to 16 of 40 readings.",
        "",
        "| diagnosed from | healthy runs | any HIGH | any MEDIUM | sick runs | own finding | HIGH | other |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    differ = []
    for words, source in (("history in memory", "found"), ("record on file", "recorded")):
        alarms = [
            _share(healthy, sum(_alarmed(row, c, source) for row in healthy)) for c in ("HIGH", "MEDIUM")
        ]
        own = [found for row in sick if (found := _own(row, source)) is not None]
        high = sum(confidence == "HIGH" for confidence, _ in own)
        other = sum(_other(row, source) for row in sick)
        lines.append(
            f"| {words} | {len(healthy)} | {alarms[0]} | {alarms[1]} | {len(sick)} "
            f"| {_share(sick, len(own))} | {high} | {other} |"
        )
    for row in [*healthy, *sick]:
        kinds = [{k: v[0] for k, v in row[source].items()} for source in ("found", "recorded")]
        if kinds[0] != kinds[1]:
            named = [", ".join(f"{k} {c}" for k, c in kind.items()) or "nothing" for kind in kinds]
            differ.append(
                f"- {row['workload']} {row['what']} (seed {row['seed']}): history {named[0]}; record "
                f"{named[1]}"
            )
    if differ:
        lines += ["", "Runs whose findings differ between the two:", "", *differ]
    else:
        lines += ["", "The findings are the same in all runs."]
    return ["## Diagnosed from the record on file", "\n".join(lines)]


def _about(row: Row) -> str:
    found = ", ".join(row["found"]) or "nothing"
    return f"{row['workload']} {row['what']} (seed {row['seed']}): found {found}"


def _tier2(judged: Sequence[Row]) -> str:
    lines = [
        "| workload | run | seeds | found | by step | other findings |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for workload in TIER2_ON:
        for kind, what in TIER2.items():
            part = [
                row for row in judged if (row["workload"], row["kind"], row["what"]) == (workload, kind, what)
            ]
            if not part:
                continue
            own = [row["found"][kind][1] for row in part if kind in row["found"]]
            others = sorted({k for row in part for k in row["found"] if k != kind})
            hit = "should have none" if kind == "healthy" else f"{len(own)} of {len(part)}"
            step = str(max(own)) if own else "-"
            lines.append(
                f"| {workload} | {what} | {len(part)} | {hit} | {step} | {', '.join(others) or 'none'} |"
            )
    return "\n".join(lines)


def _tier3(rows: Sequence[Row]) -> str:
    if not rows:
        return "No run was branched."
    lines = [
        "*Warned* is the step of the detector's first warning, and *half lost* the step at which a matrix of "
        "the unchanged run was down to half of its norm. The other columns are final validation losses: of "
        "the unchanged run, with the advice taken, and with a decay of 0.01. *Changes* are the decays that "
        "the advice set.",
        "",
        "| workload | seed | decay | warned | half lost | unchanged | advice taken | decay 0.01 | changes |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in sorted(rows, key=lambda row: (row["workload"], row["seed"])):
        changes = ", ".join(f"step {step}: {decay:.3g}" for step, decay in row["decays"][:4])
        lines.append(
            f"| {row['workload']} | {row['seed']} | {row['decay']:.3g} | {row['warned']} | {row['halved']} | "
            f"{row['unchanged']:.3f} | {row['repaired']:.3f} | {row['usual']:.3f} | {changes} |"
        )
    return "\n".join(lines)
