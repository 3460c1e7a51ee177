"""The table of what is supported, from rows that were checked."""

from __future__ import annotations

from collections.abc import Sequence

from thermoopt.benchmarks.others.checks import EXACT, Row

__all__ = ["BEGIN", "END", "put", "table"]

BEGIN = "<!-- table: made by tests/integrations/test_other_optimizers.py -->"
END = "<!-- end of the table -->"


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table, one line per optimizer."""
    lines = [
        "| optimizer | measured by | sigma, norms, distance | r, split, cosine | schedule | remarks |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(f"| {' | '.join(_cells(row))} |")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    name = f"{row.package} {row.name}"
    if row.refused:
        return name, "refused", "", "", "", row.refused
    measured = "moments" if row.moments else "displacement"
    inexact = [q for q, error in row.errors.items() if error > EXACT]
    exact = "yes"
    if not row.errors:
        exact = "no"
    elif row.unavailable or inexact:
        exact = "all but " + ", ".join(sorted({*row.unavailable, *inexact}))
    remarks = "steps are skipped: none has a single gradient" if row.skipped.get("closure") else ""
    remarks = "sets its lr inside its step" if row.rewrites else remarks
    return (
        name,
        measured,
        exact,
        "yes" if row.moments else "no",
        "yes" if row.scheduled else "no",
        remarks,
    )


def put(page: str, made: str) -> str:
    """Return a page with its table replaced."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}"
