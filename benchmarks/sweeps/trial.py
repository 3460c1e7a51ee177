"""One training run and its row of results."""

from __future__ import annotations

import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thermoopt.benchmarks.methods import METHODS, Point, Setup
from thermoopt.benchmarks.workloads import WORKLOADS, Task

__all__ = ["Row", "Stopped", "TrialSpec", "log_path", "peak_mb", "run_trial"]

Row = dict[str, Any]
"""The result of a trial as plain data: fields of :class:`TrialSpec` and the values of :func:`run_trial`."""


class Stopped(Exception):
    """A run was asked to stop before its end; it leaves no result."""


@dataclass(frozen=True)
class TrialSpec:
    """The specification of a trial.

    Attributes:
        protocol, tier: hash and name of the protocol's tier.
        workload, steps, method, seed: the study.
        k: index of the point in the study's design, from 0.
        lr, decay: the point; None for a value that the method does not tune.
        evaluations: number of validations after the start.
        log_every: steps between lines of the log.
        retried: whether an earlier attempt was lost.
    """

    protocol: str
    tier: str
    workload: str
    steps: int
    method: str
    seed: int
    k: int
    lr: float | None
    decay: float | None
    evaluations: int
    log_every: int = 1
    retried: bool = False


def run_trial(spec: TrialSpec, logs: Path | None = None, stopped: Callable[[], bool] = lambda: False) -> Row:
    """Train once.

    A run diverges if a loss is not finite, or if its last validation loss is above its first. Its score is
    then the initial loss, as if it had never trained, so that failures are not ranked by how far they went.

    Args:
        spec: the trial.
        logs: folder for the log of training losses and learning rates; None writes none.
        stopped: called before every step; whether to stop.

    Returns:
        ``protocol``, ``tier``, ``workload``, ``metric``, ``steps``, ``method``, ``tunables``, ``seed``,
        ``k``, ``lr``, ``decay``; ``valid`` (last validation loss), ``initial`` (the one before training),
        ``diverged``, ``curve`` (pairs of step and validation loss, of a diverged run as long as they are
        finite), ``seconds`` (training without validations), ``eval_seconds``, ``step_ms`` (median of what
        follows a backward pass: report, step, schedule), ``extra_steps`` (of runs that making the method
        took), ``peak_mb`` (resident, of this process so far), ``sha256`` of the data, ``retried``.

    Raises:
        Stopped: if ``stopped`` says so.
        ValueError: if the initial loss is not finite.
        OSError: if the log cannot be written.
    """
    workload, method = WORKLOADS[spec.workload], METHODS[spec.method]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)  # for layers that draw while they train
        task = workload.build(spec.seed)
        setup = method.build(task.model, Point(spec.lr, spec.decay), spec.steps, spec.seed, workload.build)
        course = _Course(task, setup, spec, stopped)
        course.run()
    if logs is not None:
        _write_log(log_path(logs, spec), course.log)
    valid = course.curve[-1][1]
    diverged = course.broken or valid > course.initial
    return {
        "protocol": spec.protocol,
        "tier": spec.tier,
        "workload": spec.workload,
        "metric": workload.metric,
        "steps": spec.steps,
        "method": spec.method,
        "tunables": list(method.tunables),
        "seed": spec.seed,
        "k": spec.k,
        "lr": spec.lr,
        "decay": spec.decay,
        "valid": course.initial if diverged else valid,
        "initial": course.initial,
        "diverged": diverged,
        "curve": course.curve,
        "seconds": round(course.seconds, 3),
        "eval_seconds": round(course.eval_seconds, 3),
        "step_ms": round(1e3 * statistics.median(course.step_seconds), 4),
        "extra_steps": setup.extra_steps,
        "peak_mb": round(peak_mb(), 1),
        "sha256": workload.sha256(),
        "retried": spec.retried,
    }


class _Course:
    """A run as it goes: what it measures of itself."""

    def __init__(self, task: Task, setup: Setup, spec: TrialSpec, stopped: Callable[[], bool]) -> None:
        self._task, self._setup, self._spec, self._stopped = task, setup, spec, stopped
        self.curve: list[list[float]] = []
        self.log: list[str] = []
        self.step_seconds: list[float] = []
        self.seconds = self.eval_seconds = 0.0
        self.broken = False
        self._judge(0)
        if self.broken:
            raise ValueError(f"{spec.workload}, seed {spec.seed}: the initial loss is not finite")
        self.initial = self.curve[0][1]

    def run(self) -> None:
        """Train to the end, or until a loss is not finite."""
        steps = self._spec.steps
        judged = {round(x) for x in np.linspace(0, steps, self._spec.evaluations + 1)[1:]}
        for step in range(1, steps + 1):
            if self._stopped():
                raise Stopped
            start = time.perf_counter()
            self._step(step)
            self.seconds += time.perf_counter() - start
            if self.broken:
                return
            if step in judged:
                self._judge(step)
                if self.broken:
                    return

    def _step(self, step: int) -> None:
        setup = self._setup
        loss = self._task.loss()
        setup.optimizer.zero_grad()
        loss.backward()
        value = loss.item()
        lr = _rate(setup.optimizer)
        start = time.perf_counter()
        if math.isfinite(value):
            setup.report(loss)
            setup.optimizer.step()
            if setup.schedule is not None:
                setup.schedule.step()
            setup.after_step()
        self.step_seconds.append(time.perf_counter() - start)
        self.broken = not math.isfinite(value)
        if step % self._spec.log_every == 0 or step == 1 or self.broken:
            self.log.append(f'{{"step": {step}, "loss": {_json(value)}, "lr": {_json(lr)}}}\n')

    def _judge(self, step: int) -> None:
        start = time.perf_counter()
        self._setup.before_judging()
        valid = self._task.evaluate()
        self._setup.after_judging()
        self.eval_seconds += time.perf_counter() - start
        self.broken = not math.isfinite(valid)
        if not self.broken:
            self.curve.append([step, valid])


def _rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the learning rate of the first group, including a controller's scale."""
    group = optimizer.param_groups[0]
    return float(group["lr"]) * group.get("thermo", {}).get("lr_scale", 1.0)


def _json(x: float) -> str:
    return f"{x:.6g}" if math.isfinite(x) else "null"


def log_path(logs: Path, spec: TrialSpec) -> Path:
    """Return the path of a trial's log."""
    folder = logs / f"{spec.workload}-{spec.steps}" / spec.method.replace(" ", "_").replace("/", "_")
    return folder / f"seed{spec.seed}-k{spec.k}.jsonl"


def _write_log(path: Path, lines: list[str]) -> None:
    """Write a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        part.write_text("".join(lines))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def peak_mb() -> float:
    """Return the peak resident size of this process so far, in 10^6 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
