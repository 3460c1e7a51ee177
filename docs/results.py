"""Bring the tables of docs/results.md up to date with the files that the benchmarks wrote.

In the page a table stands between two comments, the first of which says where it comes from::

    <!-- table: ../benchmarks/results/control/control.md, "Ratio to the best", columns: method, lr, worst -->
    <!-- /table -->

The heading is the beginning of a heading of that file, whose first table it is; without ``columns`` all of
them are shown. ``python docs/results.py`` writes the page; ``--check`` only says whether it would change.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("results.md")
MARK = re.compile(
    r'<!-- table: (?P<path>\S+), "(?P<heading>[^"]+)"(?:, columns: (?P<columns>[^>]+?))? -->\n'
    r".*?<!-- /table -->",
    re.DOTALL,
)


def refreshed(page: str, folder: Path) -> str:
    """Return the page with every table as its source has it.

    Raises:
        LookupError: a file has no such heading, no table below it, or not such a column.
    """
    return MARK.sub(lambda mark: _filled(mark, folder), page)


def _filled(mark: re.Match[str], folder: Path) -> str:
    lines = _table((folder / mark["path"]).read_text(encoding="utf-8"), mark["heading"], mark["path"])
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    if mark["columns"]:
        wanted = [name.strip() for name in mark["columns"].split(",")]
        if missing := [name for name in wanted if name not in rows[0]]:
            raise LookupError(f"{mark['path']}, {mark['heading']!r}: no column {missing[0]!r} in {rows[0]}")
        places = [rows[0].index(name) for name in wanted]
        rows = [[row[i] for i in places] for row in rows]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    opening = mark[0].split("\n", 1)[0]
    return f"{opening}\n\n{table}\n\n<!-- /table -->"


def _table(text: str, heading: str, path: str) -> list[str]:
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(rf"#+ {re.escape(heading)}", line)]
    if not starts:
        raise LookupError(f"{path}: no heading that begins with {heading!r}")
    below = lines[starts[0] + 1 :]
    end = next((i for i, line in enumerate(below) if line.startswith("#")), len(below))
    first = next((i for i, line in enumerate(below[:end]) if line.startswith("|")), None)
    if first is None:
        raise LookupError(f"{path}: no table below {heading!r}")
    last = next((i for i in range(first, len(below)) if not below[i].startswith("|")), len(below))
    return below[first:last]


def main(arguments: list[str]) -> int:
    """Write or check the page; 1 if ``--check`` finds it out of date."""
    old = PAGE.read_text(encoding="utf-8")
    new = refreshed(old, PAGE.parent)
    if "--check" in arguments:
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
