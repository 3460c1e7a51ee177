"""Tables of plain text, the same data for a terminal and for a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOTHING", "Table", "course"]

_BARS = "▁▂▃▄▅▆▇█"

NOTHING = "nothing on record"
"""Shown in place of a table without rows."""

FLAT = 0.1
"""Relative range within which a sparkline is drawn flat: averages over about ten steps wander that far
without a cause."""


@dataclass(frozen=True)
class Table:
    """Cells of text under a head.

    Attributes:
        title: what the table shows.
        head: one word per column, in order of importance: a narrow terminal leaves out the last ones.
        rows: one cell per column.
        left: columns aligned to the left; the others hold numbers.
        note: a line below, or none.
    """

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    left: frozenset[int] = frozenset({0})
    note: str = ""

    def lines(self, width: int) -> list[str]:
        """Lay the table out, indented by two.

        Args:
            width: columns of the terminal; those of the table that do not fit are left out, and named.
        """
        if not self.rows:
            return [f"{self.title}: {NOTHING}"]
        widths = [max(len(row[i]) for row in (self.head, *self.rows)) for i in range(len(self.head))]
        count = len(widths)
        while count > 2 and 2 * count + sum(widths[:count]) > width:
            count -= 1
        out = [self.title]
        for row in (self.head, tuple("─" * w for w in widths), *self.rows):
            cells = [
                cell.ljust(w) if i in self.left else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row[:count], widths, strict=False))
            ]
            out.append("  " + "  ".join(cells).rstrip())
        if count < len(widths):
            out.append(f"  (a wider terminal also shows {', '.join(self.head[count:])})")
        if self.note:
            out.append(f"  {self.note}")
        return out

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown, without its title; a note goes below."""
        if not self.rows:
            return f"{NOTHING[0].upper()}{NOTHING[1:]}."

        def line(cells: Sequence[str]) -> str:
            escaped = (cell.replace("|", r"\|") for cell in cells)
            return f"| {' | '.join(escaped)} |"

        rule = line(["---" if i in self.left else "---:" for i in range(len(self.head))])
        out = "\n".join([line(self.head), rule, *map(line, self.rows)])
        return f"{out}\n\n{self.note}" if self.note else out


def course(values: NDArray[np.float64], width: int) -> str:
    """Draw a series as a sparkline: medians of equal parts, gaps where undefined.

    Bars range from the smallest to the largest value, on a logarithmic scale if all are positive, else on a
    linear one. A series whose values stay within :data:`FLAT` of their size is flat.

    Args:
        values: ``[n]``.
        width: maximum number of characters.
    """
    parts = np.array_split(values, min(width, len(values))) if len(values) else []
    middles = np.array([_median(part) for part in parts])
    known = middles[np.isfinite(middles)]
    if not known.size:
        return ""
    if known.min() > 0:
        middles, known, least = np.log(middles), np.log(known), math.log1p(FLAT)
    else:
        least = FLAT * float(np.abs(known).max()) or 1.0
    low, high = float(known.min()), float(known.max())
    span = max(high - low, least)
    height = (middles - (low + high - span) / 2) / span
    return "".join(" " if math.isnan(h) else _BARS[round(h * (len(_BARS) - 1))] for h in height.tolist())


def _median(values: NDArray[np.float64]) -> float:
    """Median of the finite values: a page needs thousands, and numpy's is ten times slower for short ones."""
    known = np.sort(values[np.isfinite(values)])
    n = len(known)
    return float(known[(n - 1) // 2] + known[n // 2]) / 2 if n else math.nan
