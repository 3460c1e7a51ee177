"""Measure how often the diagnosis is wrong: false alarms, misses, and what following its advice gains.

Every run is a row of ``rows.jsonl``; runs that have a row are not repeated. The tables are written to
``validation.md``. Thresholds were set on seed 0 of the development workloads. Only other seeds, and workloads
on which nothing was set, are judged here. thermoclaw 0.1.6 diagnoses the same runs if it is installed.

    python -m thermoopt.benchmarks.validation --out runs/validation  # everything, half an hour on 2 cores
    python -m thermoopt.benchmarks.validation --workloads mlp cnn --seeds 1     # part of it
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import tempfile
import time
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thermoopt import JSONLSink, Observer, diagnose
from thermoopt.benchmarks.harness.environment import environment
from thermoopt.benchmarks.harness.rows import read_rows
from thermoopt.benchmarks.validation.branch import branches, intervene
from thermoopt.benchmarks.validation.report import report
from thermoopt.benchmarks.validation.runs import DEVELOPMENT, Case, healthy, sick, train
from thermoopt.diagnosis import DiagnosticReport
from thermoopt.record import SavedRun

__all__ = ["judge", "main", "plan"]

CHECKS = 8
"""Number of equally spaced diagnoses of a run, which counts as alarmed if any of them alarms."""

RECORD_ROWS = 16
"""Rows of layers in the record that is diagnosed as well: of 40 readings, thinned as a long one is."""

HELD_OUT = ("vit", "lstm")
"""Workloads on which no threshold was set."""


class Watch:
    """All tools that judge a run."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, case: Case) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._record = Path(self._folder.name) / "run.jsonl.gz"
        self._sink = JSONLSink(self._record, max_rows=RECORD_ROWS, max_events=RECORD_ROWS)
        self.observer = Observer(model, optimizer, sinks=[self._sink])
        self.every = case.steps // CHECKS
        self.found: dict[str, tuple[str, int]] = {}
        self.recorded: dict[str, tuple[str, int]] = {}
        self.peer = _Thermoclaw(model, optimizer) if importlib.util.find_spec("thermoclaw") else None

    def each(self, step: int, loss: float) -> None:
        """Judge the run after a step."""
        self.observer.step(loss=loss)
        if self.peer is not None:
            self.peer.step(loss)
        if step % self.every == 0:
            _take(self.found, diagnose(self.observer), step)
            self.observer.sinks.flush()
            _take(self.recorded, diagnose(SavedRun.read(self._record)), step)

    def close(self) -> None:
        """Remove the record."""
        self._sink.close()
        self._folder.cleanup()


def _take(found: dict[str, tuple[str, int]], report: DiagnosticReport, step: int) -> None:
    """Keep the findings of high and medium confidence, with the step of the first."""
    for finding in report.findings:
        if finding.confidence == "HIGH" and found.get(finding.kind, ("",))[0] == "MEDIUM":
            found[finding.kind] = ("HIGH", found[finding.kind][1])
        if finding.confidence != "LOW":
            found.setdefault(finding.kind, (finding.confidence, step))


class _Thermoclaw:
    """thermoclaw's tools as its README puts them together; its report at the end counts."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        import thermoclaw

        self._package = thermoclaw
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._observer = thermoclaw.Observer(model, optimizer)
            self._split = thermoclaw.EntropySplit(model, optimizer, self._observer)
            self._collapse = thermoclaw.CollapseDetector(model, optimizer)

    def step(self, loss: float) -> None:
        """Call all of them, before gradients are cleared."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._observer.step(loss=loss)
            self._split.step()
            self._collapse.step()

    def recommendations(self) -> list[str]:
        """Return what it says at the end; an error of its own is returned as ``[ERROR]``."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return list(
                    self._package.diagnose(self._observer, self._split, self._collapse).recommendations
                )
        except (ValueError, OverflowError, ZeroDivisionError) as error:
            return [f"[ERROR] {error}"]


def judge(case: Case) -> dict[str, Any]:
    """Train once and diagnose.

    Returns:
        The row: the case, ``found`` (kind to confidence and first step), ``recorded`` (the same from the
        record of the run, its rows of layers thinned to :data:`RECORD_ROWS`), ``thermoclaw`` (what it
        recommends, None where it is not installed), ``initial`` and ``valid`` losses, ``seconds``.
    """
    started = time.perf_counter()
    watch, task, initial = train(
        case, lambda model, optimizer: Watch(model, optimizer, case), lambda w, step, loss: w.each(step, loss)
    )
    watch.close()
    valid = task.evaluate()
    return {
        **case.to_dict(),
        "found": watch.found,
        "recorded": watch.recorded,
        "thermoclaw": None if watch.peer is None else watch.peer.recommendations(),
        "initial": initial,
        "valid": valid if math.isfinite(valid) else None,
        "seconds": round(time.perf_counter() - started, 2),
    }


def plan(workloads: list[str], seeds: list[int]) -> list[Case]:
    """Return all cases, seeds outermost; seed 0 only of workloads held out."""
    cases = []
    for seed in seeds:
        known = tuple(w for w in workloads if w in HELD_OUT or seed != 0)
        cases += [*healthy(known, (seed,)), *sick(known, (seed,))]
    return cases


def _case(row: dict[str, Any]) -> Case:
    values = {f.name: row[f.name] for f in fields(Case)}
    return Case(**{**values, "betas": tuple(values["betas"])})


def _work(job: Case | tuple[str, int]) -> dict[str, Any]:
    return judge(job) if isinstance(job, Case) else intervene(*job)


def _one_thread() -> None:
    torch.set_num_threads(1)


def main() -> None:
    """Run the missing cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*DEVELOPMENT, *HELD_OUT]
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/validation"), help="folder (default: runs/validation)")
    add("--workloads", nargs="+", choices=known, default=known, help="default: all")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "rows.jsonl"
    rows = list(read_rows(path))
    done = {_case(row) for row in rows if "found" in row}
    branched = {(row["workload"], row["seed"]) for row in rows if "branch" in row}
    todo: list[Case | tuple[str, int]] = [
        case for case in plan(args.workloads, args.seeds) if case not in done
    ]
    todo += [b for b in branches(args.workloads, args.seeds) if b not in branched]
    print(f"{len(rows)} runs are done, {len(todo)} to do", flush=True)
    commit = environment(args.workers)["commit"]
    of_commit = {} if commit is None else {"commit": commit[:7]}
    torn = path.exists() and not path.read_text().endswith("\n")
    with multiprocessing.get_context("spawn").Pool(args.workers, _one_thread) as pool, path.open("a") as file:
        file.write("\n" if torn else "")
        for i, done_now in enumerate(pool.imap_unordered(_work, todo), 1):
            row = {**done_now, **of_commit}
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            about = (
                f"{row['workload']:7} seed {row['seed']}  {row.get('kind', 'branch')} {row.get('what', '')}"
            )
            print(f"{i}/{len(todo)}  {about}  {row.get('found', '')}  {row['seconds']:.0f} s", flush=True)
    tables = report(rows, HELD_OUT)
    (args.out / "validation.md").write_text(tables)
    print(f"{tables}\nwrote {args.out}/validation.md")
