"""One run and its row; many runs in several processes, each row saved as soon as it is finished."""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from thermoopt.benchmarks.families.cases import Case
from thermoopt.benchmarks.families.laws import law_method
from thermoopt.benchmarks.harness.rows import read_rows
from thermoopt.benchmarks.methods import METHODS, SCHEDULED, Point
from thermoopt.benchmarks.workloads import WORKLOADS

__all__ = ["case_of", "run", "run_all"]

Row = dict[str, Any]


def run(case: Case, source: str | None = None) -> Row:
    """Train once.

    A run diverges if a loss is not finite or its last score is above its first: its score is then that of
    the untrained model, so that failures are not ranked by how far they went.

    Args:
        case: what to run.
        source: of a law whose label the case's method is; None where it is a method.

    Returns:
        The fields of the case; ``score`` (as :attr:`Task.evaluate` gives it at the end), ``initial`` (before
        training), ``final`` (the score even of a run that diverged; None if not finite), ``diverged``,
        ``seconds`` (of the processor, training only), ``sha256`` of the data, ``source``.
    """
    workload = WORKLOADS[case.workload]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        task = workload.build(case.seed)
        initial = task.evaluate()
        method = (METHODS | SCHEDULED)[case.method] if source is None else law_method(case.method, source)
        setup = method.build(task.model, Point(case.lr), case.steps, case.seed, workload.build)
        start = time.process_time()
        finite = True
        for _ in range(case.steps):
            loss = task.loss()
            setup.optimizer.zero_grad()
            loss.backward()
            finite = math.isfinite(loss.item())
            if not finite:
                break
            if case.told:
                setup.report(loss)
            setup.optimizer.step()
            if setup.schedule is not None:
                setup.schedule.step()
            setup.after_step()
        seconds = time.process_time() - start
        setup.before_judging()
        final = task.evaluate() if finite else math.nan
    diverged = not final <= initial  # also true for NaN
    return {
        **asdict(case),
        "score": initial if diverged else final,
        "initial": initial,
        "final": final if math.isfinite(final) else None,
        "diverged": diverged,
        "seconds": round(seconds, 2),
        "sha256": workload.sha256(),
        "source": source,
    }


def case_of(row: Mapping[str, Any]) -> Case:
    """Return the case of a row."""
    return Case(**{name: row[name] for name in Case.__dataclass_fields__})


def _one_thread() -> None:
    torch.set_num_threads(1)


def _run(job: tuple[Case, str | None]) -> Row:
    return run(*job)


def run_all(path: Path, todo: Iterable[Case], workers: int, source: str | None = None) -> list[Row]:
    """Run what is missing and append its rows to a file.

    Args:
        path: of the rows, JSON, one per line.
        todo: cases; those whose rows are in the file with the same source are not run again.
        workers: processes, one thread each.
        source: of the law that all cases use; None if they name methods.

    Returns:
        All rows of the file, including other cases.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(read_rows(path))
    there = {case_of(row) for row in rows if row["source"] == source}
    missing = [case for case in todo if case not in there]
    print(f"{path}: {len(rows)} runs are done, {len(missing)} to do", flush=True)
    if not missing:
        return rows
    torn = bool(rows) and not path.read_text().endswith("\n")
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(missing)), _one_thread) as pool, path.open("a") as file:
        file.write("\n" if torn else "")
        made = pool.imap_unordered(_run, [(case, source) for case in missing])
        for i, row in enumerate(made, 1):
            file.write(json.dumps(row) + "\n")
            file.flush()
            rows.append(row)
            lost = " diverged" if row["diverged"] else ""
            print(
                f"{i}/{len(missing)}  {row['workload']:9} {row['steps']:5}  {row['method']:16} lr "
                f"{row['lr']}  seed {row['seed']}  {row['score']:.4g} from {row['initial']:.4g}{lost}  "
                f"{row['seconds']:.0f} s",
                flush=True,
            )
    return rows
