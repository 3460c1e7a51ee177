"""Measure the irreversibility of training: four measures, two theorems, a valley, paths of update energy.

The parts are ``agreement`` (the measures compared with (η/4)‖U‖² on a quadratic and small nets),
``symmetries`` (theorems 6 and 7), ``valley`` (does phi fall at equal loss?) and ``paths`` (update energy
along six schedules, over 2000 steps of a transformer, a recurrent net and a regression). Every result is a
row of ``rows.jsonl``; cases that have a row are not repeated. Paths are stored in ``paths/`` as arrays
``[steps, 4]`` (energy, r, lr, loss).

    python -m thermoopt.benchmarks.irreversibility --tier quick                 # paths of 500 steps
    python -m thermoopt.benchmarks.irreversibility --out runs/irreversibility        # all
    python -m thermoopt.benchmarks.irreversibility --parts agreement valley          # a few minutes
    python -m thermoopt.benchmarks.irreversibility --parts paths --models linear --seeds 0

Tables and figures go to ``report.md`` beside the rows. It begins with ``words.md``, if there is one.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from thermoopt.benchmarks.harness.pool import workers
from thermoopt.benchmarks.harness.rows import read_rows
from thermoopt.benchmarks.irreversibility.agreement import KINDS, agree, symmetry
from thermoopt.benchmarks.irreversibility.models import BUILD
from thermoopt.benchmarks.irreversibility.paths import SCHEDULES, STEPS, train
from thermoopt.benchmarks.irreversibility.paths import plan as plan_paths
from thermoopt.benchmarks.irreversibility.report import write_report
from thermoopt.benchmarks.irreversibility.valley import Valley, walk
from thermoopt.benchmarks.irreversibility.valley import plan as plan_valley

__all__ = ["PARTS", "main"]

PARTS = ("agreement", "symmetries", "valley", "paths")
SEEDS = (0, 1, 2)
TIERS = {"quick": 500, "full": STEPS}
"""Steps of the paths; all other parts take minutes."""

Job = tuple[tuple[Any, ...], Callable[[], dict[str, Any]]]


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """The fields that identify a row."""
    names = {
        "agreement": ("kind", "seed"),
        "symmetries": ("seed",),
        "valley": ("net", "noise", "dynamics", "rate", "steps"),
        "paths": ("model", "schedule", "seed", "steps"),
    }
    return row["part"], *(row[name] for name in names[row["part"]])


def _agreed(kind: str, seed: int) -> dict[str, Any]:
    return agree(kind, seed)[0]


def _walked(it: Valley) -> dict[str, Any]:
    return {"part": "valley", **walk(it)}


def jobs(args: argparse.Namespace) -> Iterator[Job]:
    """Yield all requested jobs: their key and their function."""
    if "agreement" in args.parts:
        for seed in args.seeds:
            for kind in KINDS:
                yield ("agreement", kind, seed), partial(_agreed, kind, seed)
    if "symmetries" in args.parts:
        for seed in args.seeds:
            yield ("symmetries", seed), partial(symmetry, seed)
    if "valley" in args.parts:
        for it in plan_valley():
            what = ("valley", it.net, it.noise, it.dynamics, it.rate, it.steps)
            yield what, partial(_walked, it)
    if "paths" in args.parts:
        (args.out / "paths").mkdir(exist_ok=True)
        for path in plan_paths(args.models, args.schedules, args.seeds, args.steps):

            def run(path: Any = path) -> dict[str, Any]:
                row, stored = train(path)
                np.save(args.out / "paths" / f"{path.name}.npy", stored)
                return {"part": "paths", **row}

            yield ("paths", path.model, path.schedule, path.seed, path.steps), run


def work(case: tuple[argparse.Namespace, tuple[Any, ...]]) -> dict[str, Any]:
    """Run a job given by its key, since functions cannot be passed between processes."""
    args, what = case
    return dict(jobs(args))[what]()


def main() -> None:
    """Run the missing jobs, then write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/irreversibility"), help="folder for the results")
    add("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="default: all")
    add("--models", nargs="+", choices=BUILD, default=list(BUILD), help="models of the paths (default: all)")
    add("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES), help="default: all")
    add("--seeds", nargs="+", type=int, default=list(SEEDS), help="default: 0 1 2")
    add("--tier", choices=TIERS, default="full", help="length of the paths (default: full)")
    add("--steps", type=int, help="steps of the paths, instead of the tier's")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    args = parser.parse_args()
    args.steps = TIERS[args.tier] if args.steps is None else args.steps
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "rows.jsonl"
    done = {key(row) for row in read_rows(path)}
    todo = [what for what, _ in jobs(args) if what not in done]
    print(f"{len(done)} runs are done, {len(todo)} to do", flush=True)
    torn = path.exists() and not path.read_text().endswith("\n")
    with workers(args.workers) as run, path.open("a") as file:
        file.write("\n" if torn else "")
        for i, (what, row) in enumerate(
            zip(todo, run(work, [(args, what) for what in todo]), strict=True), 1
        ):
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{i}/{len(todo)}  {'  '.join(map(str, what))}  {row.get('seconds', '')} s", flush=True)
    # another tier's paths may lie in the same file
    rows = [row for row in read_rows(path) if row["part"] != "paths" or row["steps"] == args.steps]
    write_report(args.out, rows)
    print(f"wrote tables and figures to {args.out}/report.md")
