"""Measure which neural thermodynamic laws hold, how well, and where they fail, in a toy and in real networks.

There are three experiments. ``toy`` compares every closed form of the river valley with simulated motion.
``hold`` trains networks at a constant rate, and compares readings with gradients at rest, with the loss that
cooling releases, and layer by layer with the loss that averaging releases. ``schedule`` measures final losses
over a grid of schedules.

Every run is a row of ``rows.jsonl``; runs that have a row are not repeated, so a stopped benchmark resumes
where it stopped. Tables are written to ``laws.md``, with the figures beside it.

    python -m thermoopt.benchmarks.laws --out runs/laws  # everything, 20 minutes on 2 cores
    python -m thermoopt.benchmarks.laws --experiments toy --seeds 0           # part of it
    python -m thermoopt.benchmarks.laws --workloads mlp --out runs/laws_mlp
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from thermoopt.benchmarks.harness import pool
from thermoopt.benchmarks.harness.rows import read_rows
from thermoopt.benchmarks.laws.figures import draw
from thermoopt.benchmarks.laws.report import report
from thermoopt.benchmarks.laws.runs import FACTORS, HELD, SCHEDULED, SHAPES, Held, Scheduled, hold, schedule
from thermoopt.benchmarks.laws.toy import LAWS, Toy, toy

__all__ = ["EXPERIMENTS", "Case", "complete", "main", "plan"]

Case = Toy | Held | Scheduled

EXPERIMENTS = ("toy", "hold", "schedule")

SEEDS = (0, 1, 2)


def plan(experiments: Iterable[str], workloads: Iterable[str], seeds: Iterable[int]) -> Iterator[Case]:
    """Yield all cases, seeds outermost: a stop at any moment leaves nearly equal counts."""
    workloads = list(workloads)
    for seed in seeds:
        if "toy" in experiments:
            yield from (Toy(law, seed) for law in LAWS)
        for w in workloads:
            if "hold" in experiments and w in HELD:
                yield from (Held(w, factor, seed) for factor in FACTORS)
        for w in workloads:
            if "schedule" in experiments and w in SCHEDULED:
                yield from (Scheduled(w, shape, f, seed) for f in FACTORS for shape in SHAPES)


def work(case: Case) -> dict[str, Any]:
    """Run one case."""
    if isinstance(case, Toy):
        return toy(case)
    return hold(case) if isinstance(case, Held) else schedule(case)


def complete(cases: Iterable[Case], out: Path, workers: int) -> list[dict[str, Any]]:
    """Run the cases that have no row in a folder yet.

    Returns:
        The rows of all cases, in the order of the cases.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "rows.jsonl"
    wanted = {_key(case.to_dict(), case.to_dict()): case for case in cases}
    names = {case.to_dict()["experiment"]: case.to_dict() for case in wanted.values()}
    rows = {}
    for row in read_rows(path):
        if row["experiment"] in names and (key := _key(row, names[row["experiment"]])) in wanted:
            rows[key] = row
    todo = [case for key, case in wanted.items() if key not in rows]
    print(f"{len(rows)} runs are done, {len(todo)} to do", flush=True)
    torn = path.exists() and not path.read_text().endswith("\n")
    with pool.workers(workers) as run, path.open("a") as file:
        file.write("\n" if torn else "")
        for i, row in enumerate(run(work, todo), 1):
            case = todo[i - 1].to_dict()
            rows[_key(row, case)] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            about = "  ".join(f"{value}" for value in case.values())
            print(f"{i}/{len(todo)}  {about}  {row['seconds']:.0f} s", flush=True)
    return [rows[key] for key in wanted]


def _key(row: dict[str, Any], like: dict[str, Any]) -> str:
    """Return the key of a case: the fields of its experiment."""
    return json.dumps({name: row.get(name) for name in like}, sort_keys=True)


def main() -> None:
    """Run the missing cases, then write tables and figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/laws"), help="folder for the results (default: runs/laws)")
    add("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="default: all")
    add("--workloads", nargs="+", choices=HELD, default=list(HELD), help="default: all")
    add("--seeds", nargs="+", type=int, default=list(SEEDS), help="default: 0 1 2")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    args = parser.parse_args()
    rows = complete(plan(args.experiments, args.workloads, args.seeds), args.out, args.workers)
    (args.out / "laws.md").write_text(report(rows))
    draw(rows, args.out)
    print(f"wrote tables and figures to {args.out}")
