"""Readings for experiment trackers: TensorBoard, W&B, MLflow, trackio, any object with ``log(dict, step)``.

Nothing is imported: a sink calls methods of the writer, run or module that it is given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from thermoopt.account.reading import Quantities, Reading

__all__ = ["LogSink", "MLflowSink", "TensorBoardSink", "WandbSink", "flat_scalars"]

MAX_SCOPE = 150
"""Characters of a group's name that go to MLflow, which takes 250 a metric: the rest is for ``thermo/``, the
name of a quantity and what tells two groups apart."""

_NOT_FOR_MLFLOW = re.compile(r"[^/\w.\- ]")
"""What MLflow 3.17 refuses in the name of a metric. Elsewhere than on Windows it takes a colon, too."""


class TensorBoardSink:
    """Writes scalars with a TensorBoard ``SummaryWriter``.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or anything with ``add_scalar``.

    Raises:
        TypeError: if the writer has no ``add_scalar``.
    """

    def __init__(self, writer: Any) -> None:
        if not has_method(writer, "add_scalar"):
            raise TypeError(
                f"TensorBoardSink: writer is {writer!r}; allowed is an object with "
                "add_scalar(tag, value, step)"
            )
        self._writer = writer

    def write(self, reading: Reading) -> None:
        """Write every finite scalar of total and groups."""
        for tag, value in flat_scalars(reading).items():
            self._writer.add_scalar(tag, value, reading.step)


class LogSink:
    """Hands ``log(dict, step)`` to a logger: trackio or its run, Accelerate, or an object of your own.

    Raises:
        TypeError: if the logger has no ``log``.
    """

    def __init__(self, logger: Any) -> None:
        if not has_method(logger, "log"):
            raise TypeError(f"LogSink: logger is {logger!r}; allowed is an object with log(dict, step)")
        self._logger = logger

    def write(self, reading: Reading) -> None:
        """Call ``log`` once with every finite scalar of total and groups."""
        self._logger.log(flat_scalars(reading), step=reading.step)


class WandbSink:
    """Logs to a W&B run with a step of its own, ``thermo/step``, and leaves W&B's step to you.

    W&B has one step for everyone who logs, and drops what comes with a smaller one: a reading with its own
    step would be lost, or your row after it. Readings therefore go without a step into the row that is open
    (``commit=False``), and ``define_metric`` makes ``thermo/step`` the axis of ``thermo/*``. Where the open
    row already holds a reading it is ended first, so that none is lost, and W&B's step grows by one.

    Args:
        run: what ``wandb.init()`` returned, or the module ``wandb``, whose run is looked up at each reading.
        keep_all: end rows, as above. If you log with a ``step=`` that grows more slowly than readings come
            (an epoch, say), W&B would then drop your rows; with False a row's last reading is the one that
            goes.

    Raises:
        TypeError: if the run has no ``log`` and ``define_metric``.
    """

    def __init__(self, run: Any, *, keep_all: bool = True) -> None:
        if not (has_method(run, "define_metric") and has_method(run, "log")):
            raise TypeError(
                f"WandbSink: run is {run!r}; allowed is wandb, or the run that wandb.init() returned"
            )
        self._given = run
        self._keep_all = keep_all
        self._defined: Any = None
        self._open: int | None = None

    def write(self, reading: Reading) -> None:
        """Log every finite scalar of total and groups, and ``thermo/step``, into the open row.

        Raises:
            RuntimeError: if there is no run yet.
        """
        run = self._given.run if isinstance(self._given, ModuleType) else self._given
        if run is None:
            raise RuntimeError("wandb has no run: call wandb.init()")
        if run is not self._defined:
            run.define_metric("thermo/step")
            run.define_metric("thermo/*", step_metric="thermo/step")
            self._defined, self._open = run, None
        values = {**flat_scalars(reading), "thermo/step": reading.step}
        if getattr(getattr(run, "settings", None), "mode", None) == "shared":
            run.log(values)  # several processes write: nobody's row is open, and no step can be asked for
            return
        row = run.step
        if self._keep_all and row == self._open:
            run.log({}, commit=True)
            row += 1
        run.log(values, commit=False)
        self._open = row


class MLflowSink:
    """Calls ``log_metrics(dict, step)``: MLflow's, or that of an object of your own (Lightning's loggers).

    MLflow refuses some names, so group names are changed where they must be: characters other than letters,
    digits and ``_ - . / space`` become ``_``, so do path components without a name (``..``, an empty one),
    and of long names the beginning is kept.

    Args:
        mlflow: the module, or an object with ``log_metrics``.
        run_id: the run to log to; None for the active one.

    Raises:
        TypeError: if there is no ``log_metrics``.
    """

    def __init__(self, mlflow: Any, run_id: str | None = None) -> None:
        if not has_method(mlflow, "log_metrics"):
            raise TypeError(
                f"MLflowSink: mlflow is {mlflow!r}; allowed is the module mlflow, or an object with "
                "log_metrics(dict, step)"
            )
        self._mlflow = mlflow
        self._where = {} if run_id is None else {"run_id": run_id}

    def write(self, reading: Reading) -> None:
        """Call ``log_metrics`` once with every finite scalar of total and groups.

        Raises:
            RuntimeError: without a run to log to, in the place of which MLflow would start one of its own.
        """
        if not self._where and has_method(self._mlflow, "active_run") and self._mlflow.active_run() is None:
            raise RuntimeError(
                "mlflow has no active run: call mlflow.start_run(), or give MLflowSink a run_id"
            )
        values = flat_scalars(reading, _mlflow_names(reading.group_names))
        self._mlflow.log_metrics(values, step=reading.step, **self._where)


def flat_scalars(reading: Reading, group_names: Sequence[str] | None = None) -> dict[str, float]:
    """Finite quantities by flat name: ``thermo/total/sigma``, ``thermo/group0/r``, ``thermo/skipped/dry``.

    Args:
        reading: to be told of.
        group_names: what to call its groups, their own names by default.
    """
    scopes: dict[str, Quantities] = {"total": reading.total}
    scopes.update(zip(group_names or reading.group_names, reading.groups, strict=True))
    out = {
        f"thermo/{scope}/{name}": value
        for scope, quantity in scopes.items()
        for name, value in vars(quantity).items()
        if math.isfinite(value)
    }
    out.update({f"thermo/skipped/{cause}": n for cause, n in reading.skipped.items()})
    return out


def has_method(x: Any, name: str) -> bool:
    """Whether an object can be asked to do something."""
    return callable(getattr(x, name, None))


def _mlflow_names(names: Sequence[str]) -> list[str]:
    """Group names that MLflow takes, each once."""
    out: list[str] = []
    for i, name in enumerate(names):
        parts = _NOT_FOR_MLFLOW.sub("_", name)[:MAX_SCOPE].split("/")
        clean = "/".join("_" if part in ("", ".", "..") else part for part in parts)
        while clean == "total" or clean in out or (clean != name and clean in names):
            clean = f"{clean}.{i}"
        out.append(clean)
    return out
