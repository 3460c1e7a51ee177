"""Compare control laws by the final validation loss on small real workloads, at two horizons.

Every run is a row of ``rows.jsonl``; runs that have a row are not repeated, so a stopped benchmark resumes
where it stopped. Runs are ordered by seed, so stopping at any moment leaves nearly equal counts.

    python -m thermoopt.benchmarks.control --out runs/control  # everything, an hour on 2 cores
    python -m thermoopt.benchmarks.control --workloads linear mlp --seeds 0    # part of it

The tables are written to ``control.md`` beside the rows.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from thermoopt.benchmarks.control.report import report
from thermoopt.benchmarks.harness.rows import read_rows
from thermoopt.benchmarks.methods import LAWS, METHODS, Point
from thermoopt.benchmarks.workloads import WORKLOADS

__all__ = ["LRS", "PROBLEMS", "RATES", "Run", "main", "plan", "run"]

SEEDS = (0, 1, 2)

PROBLEMS = ("gpt", "gru", "cnn", "mlp", "digits", "linear", "vit", "lstm")
"""Workloads of the tables in ``results/control``: the registry has grown since."""

APART = ("vit", "lstm")
"""Those of them that not all methods were run on."""

LRS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""The grid of learning rates, two per decade."""

RATES: dict[str, tuple[float | None, ...]] = {
    "adamw linear": LRS,
    "adamw cosine": LRS,
    "prodigy": (None,),
    "schedule-free": (2.5e-3,),  # its package's default
    "autotune": (None,),
    "respect_lr": LRS,
    "law diffusion": (None,),
    "law angular": (None,),
    "law distance": (None,),
    "law polyak": (None,),
    "law coherence": LRS,
}
"""Learning rates of each method; None if it needs none."""


@dataclass(frozen=True)
class Run:
    """The key of a row."""

    workload: str
    steps: int
    method: str
    lr: float | None
    seed: int


def plan(workloads: list[str], methods: list[str], seeds: list[int], horizons: list[int]) -> list[Run]:
    """Return all runs, seeds outermost."""
    return [
        Run(name, WORKLOADS[name].horizons[h], method, lr, seed)
        for seed in seeds
        for h in horizons
        for method in methods
        for name in workloads
        for lr in RATES[method]
    ]


def run(it: Run) -> dict[str, Any]:
    """Train once.

    Returns:
        The row: what was run, ``valid`` (final validation loss; that of the initial model if the run
        diverged), ``initial``, ``diverged``, ``seconds``.
    """
    task = WORKLOADS[it.workload].build(it.seed)
    initial = task.evaluate()
    method = (METHODS | LAWS)[it.method]
    setup = method.build(task.model, Point(it.lr), it.steps, it.seed)
    start = time.perf_counter()
    diverged = False
    for _ in range(it.steps):
        loss = task.loss()
        setup.optimizer.zero_grad()
        loss.backward()
        if not math.isfinite(loss.item()):
            diverged = True
            break
        setup.report(loss)
        setup.optimizer.step()
        if setup.schedule is not None:
            setup.schedule.step()
        setup.after_step()
    seconds = time.perf_counter() - start
    setup.before_judging()
    valid = task.evaluate()
    diverged = diverged or not math.isfinite(valid)
    return {
        **asdict(it),
        "valid": initial if diverged else valid,
        "initial": initial,
        "diverged": diverged,
        "seconds": round(seconds, 2),
        "sha256": WORKLOADS[it.workload].sha256(),
    }


def key(row: dict[str, Any]) -> Run:
    """Return the key of a row."""
    return Run(row["workload"], row["steps"], row["method"], row["lr"], row["seed"])


def _one_thread() -> None:
    torch.set_num_threads(1)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/control"), help="folder for rows and tables (%(default)s)")
    add(
        "--workloads",
        nargs="+",
        choices=WORKLOADS,
        default=list(PROBLEMS),
        metavar="NAME",
        help=f"workloads to run (default: {', '.join(PROBLEMS)})",
    )
    add(
        "--methods",
        nargs="+",
        choices=RATES,
        default=list(RATES),
        metavar="NAME",
        help="methods to run (default: all of the tables)",
    )
    add("--seeds", nargs="+", type=int, default=list(SEEDS), help="default: 0 1 2")
    add(
        "--horizons",
        nargs="+",
        type=int,
        choices=(0, 1),
        default=[0, 1],
        help="0 for the short horizon, 1 for the long one (default: both)",
    )
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "rows.jsonl"
    done = {key(row) for row in read_rows(path)}
    todo = [it for it in plan(args.workloads, args.methods, args.seeds, args.horizons) if it not in done]
    print(f"{len(done)} runs are done, {len(todo)} to do", flush=True)
    context = multiprocessing.get_context("spawn")
    torn = path.exists() and not path.read_text().endswith("\n")
    with context.Pool(args.workers, _one_thread) as pool, path.open("a") as file:
        file.write("\n" if torn else "")
        for i, row in enumerate(pool.imap_unordered(run, todo), 1):
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{i}/{len(todo)}  {row['workload']:7} {row['steps']:5} {row['method']:16} lr {row['lr']}  "
                  f"seed {row['seed']}  {row['valid']:.4f}  {row['seconds']:.0f} s", flush=True)  # fmt: skip
    _write_report(args.out, list(read_rows(path)))


def _write_report(out: Path, rows: list[dict[str, Any]]) -> None:
    known = [w for w in WORKLOADS.values() if any(row["workload"] == w.name for row in rows)]
    about = "\n".join(f"- {w.name}: {w.about}." for w in known)
    setting = (
        f"{len(rows)} runs with torch {torch.__version__}, one thread per run, float32, weight decay 0.01, "
        "and warm-up over 5 % of the run. `make bench-control` makes this page. The workloads are:\n\n"
    )
    (out / "control.md").write_text(
        f"# Control laws compared with tuned schedules\n\n{setting}{about}\n\n{report(rows, APART)}"
    )
    print(f"wrote {out}/control.md")
