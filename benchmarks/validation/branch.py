"""Whether acting on a warning pays: a run with too much decay, and the same run with the advice applied."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from thermoopt import CollapseDetector
from thermoopt.benchmarks.validation.runs import TUNED
from thermoopt.benchmarks.workloads import WORKLOADS

__all__ = ["BRANCHED", "branches", "intervene"]

BRANCHED = ("gpt", "digits")
"""Workloads: a transformer and a convolution net."""

PULL = 0.03
"""Fraction of each weight that decay removes per step: half in ln 2 / 0.03 = 23 steps without gradients."""

STEPS = 600


def branches(workloads: Iterable[str], seeds: Iterable[int]) -> Iterator[tuple[str, int]]:
    """Yield the runs to branch."""
    yield from ((w, seed) for seed in seeds for w in workloads if w in BRANCHED)


def _arm(workload: str, seed: int, act: bool) -> dict[str, Any]:
    """Train at a constant rate; with ``act``, follow the detector's advice at every warning."""
    task = WORKLOADS[workload].build(seed)
    wd = PULL / TUNED[workload]
    optimizer = torch.optim.AdamW(task.model.named_parameters(), lr=TUNED[workload], weight_decay=wd)
    detector = CollapseDetector(task.model, optimizer)
    matrices = [p for p in task.model.parameters() if p.ndim >= 2]
    start = [p.norm().item() for p in matrices]
    warned, halved, decays = None, None, []
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        task.loss().backward()
        optimizer.step()
        detector.step()
        if halved is None and min(p.norm().item() / n for p, n in zip(matrices, start, strict=True)) < 0.5:
            halved = step
        if detector.is_collapsing:
            warned = warned or step
            if act:
                repaired = min(detector.forecast(name).repaired_decay for name in detector.collapsing)
                optimizer.param_groups[0]["weight_decay"] = repaired
                decays.append([step, repaired])
    return {"warned": warned, "halved": halved, "decays": decays, "valid": task.evaluate()}


def intervene(workload: str, seed: int) -> dict[str, Any]:
    """Train both arms; they are the same run up to the first warning.

    Returns:
        The row: ``warned`` (step of the first warning), ``halved`` (step at which the unchanged arm first had
        a matrix at half of its norm), ``unchanged`` and ``repaired`` (final validation losses), ``decays``
        (step and decay of every change), ``decay`` (the first), ``usual`` (the loss at decay 0.01).
    """
    started = time.perf_counter()
    unchanged, repaired = _arm(workload, seed, act=False), _arm(workload, seed, act=True)
    return {
        "branch": "weight decay",
        "workload": workload,
        "seed": seed,
        "decay": PULL / TUNED[workload],
        "warned": unchanged["warned"],
        "halved": unchanged["halved"],
        "unchanged": unchanged["valid"],
        "repaired": repaired["valid"],
        "decays": repaired["decays"],
        "usual": _usual(workload, seed),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _usual(workload: str, seed: int) -> float:
    """Loss of the same run at torch's default decay."""
    task = WORKLOADS[workload].build(seed)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=TUNED[workload])
    for _ in range(STEPS):
        optimizer.zero_grad()
        task.loss().backward()
        optimizer.step()
    value = task.evaluate()
    return float(np.nan) if not math.isfinite(value) else value
