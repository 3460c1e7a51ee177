"""A run read back from its JSONL: what diagnosis and pictures need, without the model."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoopt.account.history import MAX_LAYER_READINGS
from thermoopt.account.reading import SKIP_CAUSES
from thermoopt.param_groups import detect_layer_type
from thermoopt.physics import QUANTITIES, check_quantity

__all__ = ["SavedHistory", "SavedLosses", "SavedRun"]

Array = NDArray[np.float64]

_COLUMN = {name: i for i, name in enumerate(QUANTITIES)}
_WRITERS = "JSONLSink and export_jsonl write them"


@dataclass(frozen=True)
class _Row:
    """Quantities of some scopes at one step: ``values[i]`` are those of ``names[i]``."""

    step: int
    names: tuple[str, ...]
    values: Array
    loss: float = math.nan

    @classmethod
    def of(cls, step: int, scopes: Mapping[str, Mapping[str, Any]], loss: float | None = None) -> _Row:
        values = np.full((len(scopes), len(QUANTITIES)), np.nan)
        for row, quantities in zip(values, scopes.values(), strict=True):
            for name, value in quantities.items():
                column = _COLUMN.get(name)
                if column is not None and value is not None:
                    row[column] = value
        # JSON has no infinity: decay that pulls with no source to hold against it is a free fall of 1 or more
        balance, fall = values[:, _COLUMN["wd_balance"]], values[:, _COLUMN["free_fall"]]
        balance[np.isnan(balance) & (fall >= 1)] = math.inf
        return cls(step, tuple(scopes), values, math.nan if loss is None else loss)


class SavedHistory:
    """Columns of a run on file, as :class:`thermoopt.account.History` has them.

    Quantities that a file does not hold, being older than they are, are NaN. Readings of layers are thinned
    as a history thins them, and the newest one is kept beside.
    """

    def __init__(self) -> None:
        self._scopes: list[_Row] = []
        self._layers: list[_Row] = []
        self._newest: tuple[int, Mapping[str, Any]] | None = None
        self._stride, self._count = 1, 0

    def append(self, record: Mapping[str, Any]) -> None:
        """Take in one record (:func:`thermoopt.account.reading_record`); its step lies above all before."""
        step, layers = record["step"], record.get("layers")
        scopes = {"total": record["total"], **record["groups"]}
        self._scopes.append(_Row.of(step, scopes, record.get("loss")))
        if layers is None:
            return
        self._newest = (step, layers)
        if self._count % self._stride == 0:
            self._layers.append(_Row.of(step, layers))
            if len(self._layers) >= MAX_LAYER_READINGS:
                self._layers = self._layers[::2]
                self._stride *= 2
        self._count += 1

    def rewind(self, step: int) -> None:
        """Forget readings after ``step``."""
        self._scopes = [row for row in self._scopes if row.step <= step]
        self._layers = [row for row in self._layers if row.step <= step]
        if self._newest is not None and self._newest[0] > step:
            self._newest = None

    def __len__(self) -> int:
        return len(self._scopes)

    @property
    def steps(self) -> NDArray[np.int64]:
        """Optimizer steps of the readings, ``[n]``."""
        return np.array([row.step for row in self._scopes], dtype=np.int64)

    @property
    def losses(self) -> Array:
        """Loss of the readings, ``[n]``, NaN where none was reported."""
        return np.array([row.loss for row in self._scopes])

    def total(self, name: str) -> Array:
        """One quantity of the whole optimizer over time, ``[n]``."""
        check_quantity(name)
        return np.array([row.values[0, _COLUMN[name]] for row in self._scopes])

    @property
    def group_names(self) -> list[str]:
        """Groups of the newest reading."""
        return list(self._scopes[-1].names[1:]) if self._scopes else []

    def group(self, index: int, name: str) -> Array:
        """One quantity of one group over time, ``[n]``, NaN before the group was added.

        Raises:
            IndexError: if no reading has that group.
        """
        check_quantity(name)
        count = max((len(row.names) - 1 for row in self._scopes), default=0)
        if not 0 <= index < count:
            raise IndexError(f"group is {index}; the history holds {count} groups, counted from 0")
        at = index + 1
        return np.array(
            [row.values[at, _COLUMN[name]] if at < len(row.names) else np.nan for row in self._scopes]
        )

    @property
    def layer_names(self) -> list[str]:
        """Layers of the newest reading that holds layers."""
        rows = self._rows
        return list(rows[-1].names) if rows else []

    @property
    def layer_steps(self) -> NDArray[np.int64]:
        """Optimizer steps of the layers' readings kept, ``[m]``."""
        return np.array([row.step for row in self._rows], dtype=np.int64)

    def layers(self, name: str) -> Array:
        """One quantity of every layer over time, ``[m, n_layers]``, NaN where there is none."""
        check_quantity(name)
        rows, names = self._rows, self.layer_names
        out = np.full((len(rows), len(names)), np.nan)
        for i, row in enumerate(rows):
            place = {layer: j for j, layer in enumerate(row.names)}
            values = row.values[:, _COLUMN[name]]
            out[i] = [values[place[layer]] if layer in place else np.nan for layer in names]
        return out

    @property
    def _rows(self) -> list[_Row]:
        if self._newest is None or (self._layers and self._layers[-1].step == self._newest[0]):
            return self._layers
        return [*self._layers, _Row.of(*self._newest)]


@dataclass(frozen=True)
class SavedLosses:
    """Losses on record.

    Attributes:
        steps: optimizer steps, ``[k]``.
        values: the losses, ``[k]``.
    """

    steps: NDArray[np.int64]
    values: Array


@dataclass
class SavedRun:
    """What a JSONL of readings says of a run, with the attributes of an observer that diagnosis reads.

    Attributes:
        path: the file.
        history: its readings.
        losses: those that the readings carry; none where the run reported none.
        start_norms: squared norm of each layer in the first reading that holds it.
        skipped: measured steps that moved nothing, by cause; 0 where the file does not say.
        frozen: empty: a record does not say what was frozen.
        bad_losses: 0: nor how many losses were not finite.
    """

    path: Path
    history: SavedHistory
    losses: SavedLosses
    start_norms: dict[str, float]
    skipped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SKIP_CAUSES, 0))
    frozen: frozenset[str] = frozenset()
    bad_losses: int = 0

    @classmethod
    def read(cls, path: str | Path) -> SavedRun:
        """Read a file that JSONLSink or an export wrote.

        Where steps go back, a run was resumed and goes on from there: what was recorded at or after that
        step is forgotten.

        Args:
            path: of the file.

        Raises:
            OSError: if it cannot be read.
            ValueError: if it is empty, or a line holds JSON that is no reading; the message names the line.

        Warns:
            RuntimeWarning: naming lines that are torn (a crash cuts the one under way): they are passed over.
        """
        path = Path(path)
        history, torn = SavedHistory(), []
        norms: dict[str, tuple[int, float]] = {}
        skipped = dict.fromkeys(SKIP_CAUSES, 0)
        newest = -1
        for number, line in _lines(path):
            try:
                record = json.loads(line)
            except ValueError:  # no JSON, or no UTF-8
                torn.append(number)
                continue
            _check(record, f"{path}, line {number}")
            step = record["step"]
            if step <= newest:
                history.rewind(step - 1)
                norms = {name: first for name, first in norms.items() if first[0] < step}
            newest = step
            history.append(record)
            for name, values in record.get("layers", {}).items():
                if name not in norms and values.get("param_norm") is not None:
                    norms[name] = (step, float(values["param_norm"]) ** 2)
            skipped.update(record.get("skipped", {}))
        if not len(history):
            why = f"none of {len(torn)} lines is JSON" if torn else "the file is empty"
            raise ValueError(f"{path}: {why}; allowed is a file of readings ({_WRITERS})")
        if torn:
            some = ", ".join(map(str, torn[:5])) + (", …" if len(torn) > 5 else "")
            what = f"line {some} is torn" if len(torn) == 1 else f"lines {some} are torn"
            warnings.warn(f"{path}: {what}: passed over", RuntimeWarning, stacklevel=2)
        known = np.isfinite(history.losses)
        losses = SavedLosses(history.steps[known], history.losses[known])
        return cls(path, history, losses, {name: norm for name, (_, norm) in norms.items()}, skipped)

    @property
    def steps(self) -> int:
        """Optimizer steps on record: that of the last reading."""
        return int(self.history.steps[-1])

    @cached_property
    def layer_types(self) -> dict[str, str]:
        """Type of each layer, by its name alone: the model is gone."""
        return {name: detect_layer_type(name) for name in self.history.layer_names}

    @cached_property
    def matrices(self) -> frozenset[str]:
        """Layers taken to have two or more dimensions: all but norms and what is called a bias."""
        return frozenset(
            name
            for name, kind in self.layer_types.items()
            if kind != "norm" and "bias" not in name.rpartition(".")[2]
        )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers from 1."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def _check(record: Any, where: str) -> None:
    """Raise unless a record can be read as a reading.

    Raises:
        ValueError: naming the line and what is wrong.
    """
    what = _flaw(record)
    if what is not None:
        raise ValueError(f"{where}: {what}, so it is no reading ({_WRITERS})")


def _flaw(record: Any) -> str | None:
    """What a record lacks or holds that a reading does not, or None."""
    if not isinstance(record, dict):
        return f"a {type(record).__name__}"
    step = record.get("step")
    if type(step) is not int or step < 0:
        return f"step is {_short(step)}"
    for part, needed in (("total", True), ("groups", True), ("layers", False), ("skipped", False)):
        if (needed or part in record) and not isinstance(record.get(part), dict):
            return f"{part} is {_short(record.get(part))}"
    scopes = {"total": record["total"], **record["groups"], **record.get("layers", {})}
    for scope, values in scopes.items():
        if not isinstance(values, dict):
            return f"{scope} is {_short(values)}"
        for name, value in values.items():
            if not _number(value):
                return f"{name} of {scope} is {_short(value)}"
    for name, value in {"loss": record.get("loss"), **record.get("skipped", {})}.items():
        if not _number(value):
            return f"{name} is {_short(value)}"
    return None


def _number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _short(value: object) -> str:
    return "missing" if value is None else repr(value)[:40]
