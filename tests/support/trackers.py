"""Doubles that keep what a tracker does with a call, and runs that log beside a sink."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Parameter

from thermoopt import Reading, ThermoAdamW
from thermoopt.physics.quantities import QUANTITIES

GROUPS = ("body", "head")


def make_optimizer(*sinks: Any, names: tuple[str, ...] = GROUPS) -> ThermoAdamW:
    generator = torch.Generator().manual_seed(5)
    groups = [
        {"params": [Parameter(torch.randn(4, 3, generator=generator))], "name": name, "weight_decay": 0.1 * i}
        for i, name in enumerate(reversed(names))
    ][::-1]
    return ThermoAdamW(groups, measure_every=1, ema_steps=1, backend="torch", sinks=sinks)


def one_step(optimizer: ThermoAdamW) -> Reading:
    generator = torch.Generator().manual_seed(100 + optimizer.steps)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=generator) + 0.5
    optimizer.step()
    return optimizer.reading


def train(optimizer: ThermoAdamW, steps: int) -> list[Reading]:
    return [one_step(optimizer) for _ in range(steps)]


def expected_scalars(reading: Reading, names: tuple[str, ...] = GROUPS) -> dict[str, float]:
    scopes = {"total": reading.total, **dict(zip(names, reading.groups, strict=True))}
    out = {
        f"thermo/{scope}/{name}": getattr(quantity, name)
        for scope, quantity in scopes.items()
        for name in QUANTITIES
        if math.isfinite(getattr(quantity, name))
    }
    return {**out, **{f"thermo/skipped/{cause}": n for cause, n in reading.skipped.items()}}


class Trackio(types.ModuleType):
    """trackio as far as ``log`` goes: refuses before ``init``, takes steps in any order."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.calls: list[tuple[dict[str, float], int | None]] = []
        self.begun = True

    def log(self, metrics: dict, step: int | None = None) -> None:
        if not self.begun:
            raise RuntimeError("Call trackio.init() before trackio.log().")
        self.calls.append((metrics, step))


class Run:
    """An object of the user's own."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, float], int]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append((values, step))


class WandbRun:
    """W&B's run as far as its step goes: rows grow until they are ended, and nothing goes into an old one."""

    def __init__(self, mode: str = "online") -> None:
        self.settings = types.SimpleNamespace(mode=mode)
        self.defined: list[tuple[str, str | None]] = []
        self.history: list[dict[str, Any]] = []
        self.refused: list[dict[str, Any]] = []
        self._step = 0
        self._row: dict[str, Any] = {}

    @property
    def step(self) -> int:
        assert self.settings.mode != "shared", "a shared run has no step"
        return self._step

    def define_metric(
        self,
        name: str,
        step_metric: str | None = None,
        step_sync: bool | None = None,
        hidden: bool | None = None,
        summary: str | None = None,
        overwrite: bool | None = None,
    ) -> None:
        self.defined.append((name, step_metric))

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        if step is not None:
            assert self.settings.mode != "shared"
            if step < self._step:
                self.refused.append(data)
                return
            if step > self._step:
                self._end(step)
        self._row.update(data)
        if commit or (commit is None and step is None):
            self._end(self._step + 1)

    def _end(self, step: int) -> None:
        if self._row:
            self.history.append({**self._row, "_step": self._step})
        self._row, self._step = {}, step

    def finish(self) -> None:
        self._end(self._step)


LOOPS: dict[str, tuple[int, Callable[[int], int | None]]] = {
    "no step": (1, lambda i: None),
    "from 0": (1, lambda i: i),
    "from 1": (1, lambda i: i + 1),
    "every 3rd": (3, lambda i: i),
    "every 3rd without a step": (3, lambda i: None),
    "micro-batches": (2, lambda i: 4 * i),
    "epochs": (4, lambda i: i // 4),
    "nothing": (99, lambda i: None),
}
"""How people log: every so many steps of the optimizer, and with which step."""


def train_beside(run: Any, sink: Any, loop: str) -> tuple[list[Reading], list[float]]:
    """12 steps with the user's own loss in the loop; readings, and the losses that were logged."""
    every, step_of = LOOPS[loop]
    optimizer = make_optimizer(sink)
    readings, losses = [], []
    for i in range(12):
        readings.append(one_step(optimizer))
        if i % every == every - 1:
            losses.append(1 / (i + 1))
            run.log({"loss": losses[-1]}, **({} if step_of(i) is None else {"step": step_of(i)}))
    return readings, losses


def read_rows(history: list[dict[str, Any]]) -> tuple[list[dict[str, float]], list[float]]:
    rows = [{k: v for k, v in row.items() if k.startswith("thermo/")} for row in history]
    return [row for row in rows if row], [row["loss"] for row in history if "loss" in row]


class MLflow(types.ModuleType):
    """mlflow as far as ``log_metrics`` goes; without a run it starts one."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.run: object | None = object()
        self.calls: list[tuple[dict[str, float], int | None, str | None]] = []

    def active_run(self) -> object | None:
        return self.run

    def log_metrics(
        self,
        metrics: dict[str, float],
        step: int | None = None,
        synchronous: bool | None = None,
        run_id: str | None = None,
        timestamp: int | None = None,
        model_id: str | None = None,
        dataset: Any = None,
    ) -> None:
        assert run_id is not None or self.run is not None, "a run was started behind the user's back"
        self.calls.append((metrics, step, run_id))


MLFLOW_NAMES = {
    "h.0.attn": "h.0.attn",
    "decay 0.1 - x/y_z": "decay 0.1 - x/y_z",
    "lr=3e-4, (wd)": "lr_3e-4_ _wd_",
    "a:b": "a_b.3",
    "a_b": "a_b",
    "../up": "_/up",
    "a//b/./": "a/_/b/_/_",
    "Gewichtung ü": "Gewichtung ü",
    "line\nbreak": "line_break",
    "x" * 300: "x" * 150,
    "x" * 299: "x" * 150 + ".10",
}
"""Group names, and what MLflow is told of groups that go by them in this order."""
