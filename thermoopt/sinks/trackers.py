"""Readings for experiment trackers: TensorBoard, W&B, MLflow, trackio, any ``log(dict, step)``, any function.

Nothing is imported: a sink calls methods of the given writer, run or module in the training thread, where
trackers keep their active run; most of them send in a separate thread.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from types import ModuleType
from typing import Any

from thermoopt.account.reading import Quantities, Reading
from thermoopt.physics import quantities

__all__ = ["LogSink", "MLflowSink", "TensorBoardSink", "WandbSink", "flat_scalars"]

PREFIX = "thermo"

MAX_PREFIX = 40

MAX_SCOPE = 150
"""Characters of a group's or a layer's name that go to MLflow, which takes 250 a metric: the rest is for the
prefix, the name of a quantity and what tells two groups apart."""

LAYER_QUANTITIES = (
    "sigma",
    "r",
    "R_ie",
    "wd_balance",
    "gaussianity",
    "rho_momentum",
    "angular_step",
    "param_norm",
)
"""Quantities of the layers asked for, those of the table of layers that ``thermoopt inspect`` shows."""

_NOT_FOR_MLFLOW = re.compile(r"[^/\w.\- ]")
"""What MLflow 3.17 refuses in the name of a metric. Elsewhere than on Windows it takes a colon, too."""


class TensorBoardSink:
    """A sink that writes scalars with a TensorBoard ``SummaryWriter``.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or anything with ``add_scalar``.
        prefix: first part of every name, so that two optimizers may share a tracker.
        layers: pattern of the layers to log, too, with ``*`` and ``?`` as in a shell; several patterns are
            separated by commas. The eight :data:`LAYER_QUANTITIES` of each layer are logged.

    Raises:
        TypeError, ValueError: if the writer has no ``add_scalar``; for a prefix that is not a name.
    """

    def __init__(self, writer: Any, *, prefix: str = PREFIX, layers: str | None = None) -> None:
        if not has_method(writer, "add_scalar"):
            raise TypeError(
                f"TensorBoardSink: writer must be an object with add_scalar(tag, value, step), got {writer!r}"
            )
        self._writer = writer
        self._names = _Names(prefix, layers)

    def write(self, reading: Reading) -> None:
        """Write every finite scalar of total, groups and the layers asked for."""
        for tag, value in self._names.scalars(reading).items():
            self._writer.add_scalar(tag, value, reading.step)


class LogSink:
    """A sink that calls ``log(dict, step=)`` of trackio, SwanLab, Accelerate or a custom object.

    Args:
        logger: an object with ``log``, or a function that takes what ``log`` does (Aim's ``run.track``).
        prefix, layers: as for :class:`TensorBoardSink`.

    Raises:
        TypeError, ValueError: if the logger is neither; for a prefix that is not a name.
    """

    def __init__(self, logger: Any, *, prefix: str = PREFIX, layers: str | None = None) -> None:
        if not (has_method(logger, "log") or is_function(logger)):
            raise TypeError(
                "LogSink: logger must be an object with log(dict, step) or a function f(dict, step=), got "
                f"{logger!r}"
            )
        self._logger = logger
        self._names = _Names(prefix, layers)

    def write(self, reading: Reading) -> None:
        """Call ``log`` once with every finite scalar of total, groups and the layers asked for."""
        log = self._logger if is_function(self._logger) else self._logger.log
        log(self._names.scalars(reading), step=reading.step)


class WandbSink:
    """A sink that logs to a W&B run with a step of its own, ``thermo/step``, leaving W&B's step to you.

    W&B has one step for all calls to ``log``, and drops rows with a smaller step: either a reading with its
    own step or your next row would be lost. Readings are therefore added without a step to the open row
    (``commit=False``), and ``define_metric`` makes ``thermo/step`` the axis of ``thermo/*``. If the open row
    already holds a reading, the row is ended first so that none is lost, and W&B's step grows by one.

    Args:
        run: the result of ``wandb.init()``, or the module ``wandb``, whose run is looked up at each reading.
        keep_all: whether to end rows as above. If you log with a ``step=`` that grows more slowly than
            readings arrive (an epoch, for example), W&B would then drop your rows; with False only the last
            reading of a row is logged.
        prefix, layers: as for :class:`TensorBoardSink`; the step is then ``PREFIX/step``.

    Raises:
        TypeError, ValueError: for anything but a W&B run; for a prefix that is not a name.
    """

    def __init__(
        self, run: Any, *, keep_all: bool = True, prefix: str = PREFIX, layers: str | None = None
    ) -> None:
        if not is_wandb(run):
            raise TypeError(
                f"WandbSink: run must be wandb or the run that wandb.init() returned, got {run!r}"
            )
        self._given = run
        self._prefix = prefix
        self._names = _Names(prefix, layers)
        self._keep_all = keep_all
        self._defined: Any = None
        self._open: int | None = None

    def write(self, reading: Reading) -> None:
        """Log every finite scalar of total, groups and requested layers, and the step, to the open row.

        Raises:
            RuntimeError: if there is no run yet.
        """
        run = self._given.run if isinstance(self._given, ModuleType) else self._given
        if run is None:
            raise RuntimeError("wandb has no run: call wandb.init()")
        if run is not self._defined:
            run.define_metric(f"{self._prefix}/step")
            run.define_metric(f"{self._prefix}/*", step_metric=f"{self._prefix}/step")
            self._defined, self._open = run, None
        values = {**self._names.scalars(reading), f"{self._prefix}/step": reading.step}
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
    """A sink that calls ``log_metrics(dict, step)`` of MLflow or a custom object (Lightning's loggers).

    MLflow rejects some names, so group names are changed where necessary: characters other than letters,
    digits and ``_ - . / space`` become ``_``, as do path components without a name (``..``, an empty one),
    and long names are cut at the end.

    Args:
        mlflow: the module, or an object with ``log_metrics``.
        run_id: the run to log to; None for the active one.
        prefix, layers: as for :class:`TensorBoardSink`.

    Raises:
        TypeError, ValueError: if the object has no ``log_metrics``; for a prefix that is not a name.
    """

    def __init__(
        self, mlflow: Any, run_id: str | None = None, *, prefix: str = PREFIX, layers: str | None = None
    ) -> None:
        if not has_method(mlflow, "log_metrics"):
            raise TypeError(
                "MLflowSink: mlflow must be the module mlflow or an object with log_metrics(dict, "
                f"step), got {mlflow!r}"
            )
        self._mlflow = mlflow
        self._names = _Names(prefix, layers, _mlflow_names)
        self._where = {} if run_id is None else {"run_id": run_id}

    def write(self, reading: Reading) -> None:
        """Call ``log_metrics`` once with every finite scalar of total, groups and the layers asked for.

        Raises:
            RuntimeError: if there is no run to log to, in which case MLflow would start one itself.
        """
        if not self._where and has_method(self._mlflow, "active_run") and self._mlflow.active_run() is None:
            raise RuntimeError(
                "mlflow has no active run: call mlflow.start_run(), or give MLflowSink a run_id"
            )
        self._mlflow.log_metrics(self._names.scalars(reading), step=reading.step, **self._where)


def flat_scalars(
    reading: Reading,
    group_names: Sequence[str] | None = None,
    *,
    prefix: str = PREFIX,
    layers: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Finite quantities by flat name: ``thermo/total/sigma``, ``thermo/group0/r``, ``thermo/skipped/dry``.

    Args:
        reading: the reading.
        group_names: what to call its groups, their own names by default.
        prefix: first part of every name.
        layers: names of layers to include, and what to call each: ``thermo/layers/h.0.weight/r``.
    """
    scopes: dict[str, Quantities] = {"total": reading.total}
    scopes.update(zip(group_names or reading.group_names, reading.groups, strict=True))
    out = {
        f"{prefix}/{scope}/{name}": value
        for scope, quantity in scopes.items()
        for name, value in vars(quantity).items()
        if math.isfinite(value)
    }
    if layers:
        place = [i for i, name in enumerate(reading.names) if name in layers and reading.seen[i]]
        formed = quantities(reading.terms[:, place])
        for name in LAYER_QUANTITIES:
            for i, value in zip(place, formed[name].tolist(), strict=True):
                if math.isfinite(value):
                    out[f"{prefix}/layers/{layers[reading.names[i]]}/{name}"] = value
    out.update({f"{prefix}/skipped/{cause}": n for cause, n in reading.skipped.items()})
    return out


class _Names:
    """What a tracker's names are made of."""

    def __init__(
        self,
        prefix: str,
        layers: str | None,
        clean: Callable[[Sequence[str]], Sequence[str]] = lambda names: names,
    ) -> None:
        if not isinstance(prefix, str) or (layers is not None and not isinstance(layers, str)):
            raise TypeError(f"prefix and layers must be strings, got {prefix!r} and {layers!r}")
        if not prefix or prefix != prefix.strip("/ ") or len(prefix) > MAX_PREFIX:
            raise ValueError(
                f"prefix must be a name of 1 to {MAX_PREFIX} characters with no / at its ends, got {prefix!r}"
            )
        self._prefix = clean([prefix])[0]
        self._patterns = [] if layers is None else [pattern.strip() for pattern in layers.split(",")]
        self._clean = clean
        self._known: tuple[tuple[str, ...], dict[str, str]] = ((), {})

    def scalars(self, reading: Reading) -> dict[str, float]:
        """Values by name."""
        if self._patterns and self._known[0] != reading.names:
            matching = [n for n in reading.names if any(fnmatchcase(n, p) for p in self._patterns)]
            called = dict(zip(matching, self._clean(matching), strict=True))
            if not called:
                warnings.warn(
                    f"no layer matches {', '.join(self._patterns)}: names look like {reading.names[0]!r}",
                    RuntimeWarning,
                    stacklevel=6,
                )
            self._known = (reading.names, called)
        groups = self._clean(reading.group_names)
        return flat_scalars(reading, groups, prefix=self._prefix, layers=self._known[1])


def has_method(x: Any, name: str) -> bool:
    """Whether an object can be asked to do something."""
    return callable(getattr(x, name, None))


def is_function(x: Any) -> bool:
    """Whether something is a function, a method or a partial one, not just any object with ``__call__``."""
    return inspect.isroutine(x) or isinstance(x, partial)


def is_wandb(x: Any) -> bool:
    """Whether something is the module ``wandb`` or a run of it, which knows the step of the row that is open.

    SwanLab and its runs have ``define_metric`` and ``log`` as well, but no such step, and no ``commit``.
    """
    if isinstance(x, ModuleType):
        return x.__name__ == "wandb"
    if not (has_method(x, "define_metric") and has_method(x, "log")):
        return False
    # told by its class, since a run in shared mode may refuse to say its step
    return hasattr(type(x), "step") or "step" in vars(x)


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
