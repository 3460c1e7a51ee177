"""A bounded record of readings, and its export."""

from __future__ import annotations

import csv
import json
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from thermoopt.account.reading import Quantities, Reading
from thermoopt.physics import QUANTITIES, Standing, Term, check_quantity, quantities

if TYPE_CHECKING:  # records are read without torch
    from thermoopt.account.meter import Meter

__all__ = ["History", "HistoryLike", "plain_quantities", "reading_record"]

Array = NDArray[np.float64]

ROWS_PER_EMA = 5
"""Readings recorded per ``ema_steps``: neighbouring rows then differ by a fifth of the average's memory, and
the cost of recording is negligible even when every step is measured."""

MAX_READINGS = 10_000
"""Readings of groups and total to keep: 2 MB per group."""

MAX_BYTES = 1 << 26
"""With so many groups that they would exceed this (34 or more), fewer are kept."""

MAX_LAYER_READINGS = 256
"""Readings of all layers to keep, evenly spaced over the run: more than a heat map has pixels for."""


TOGETHER = 16
"""Number of readings that are formed in one go if nobody waits for them: one by one between steps, each would
pay for numpy's calls and find its code out of the processor's caches. Until then they hold 3.5 KB per layer.
"""


@dataclass(frozen=True)
class _Row:
    step: int
    names: tuple[str, ...]
    terms: NDArray[Any]
    loss: float | None = None
    standings: tuple[Standing, ...] = ()


class HistoryLike(Protocol):
    """The columns of a record of readings: what pictures, tables and diagnoses read of a run."""

    @property
    def steps(self) -> NDArray[Any]:
        """Steps of the readings, ``[n]``."""

    @property
    def layer_steps(self) -> NDArray[Any]:
        """Steps of the layers' readings, ``[m]``."""

    @property
    def layer_names(self) -> Sequence[str]:
        """Names of the layers, in the order of the model."""

    @property
    def group_names(self) -> Sequence[str]:
        """Names of the parameter groups."""

    @property
    def standings(self) -> Sequence[Standing]:
        """Where a controller's rates stood, oldest first; empty where there is none."""

    def total(self, name: str) -> NDArray[Any]:
        """One quantity of all parameters together, ``[n]``."""

    def group(self, index: int, name: str) -> NDArray[Any]:
        """One quantity of one group, ``[n]``."""

    def layers(self, name: str) -> NDArray[Any]:
        """One quantity of every layer, ``[m, n_layers]``."""


class History:
    """A record of the last readings of groups and total, and of the layers evenly over the whole run.

    Terms are kept; quantities are computed on demand. When the layers' sample is full, every second reading
    is dropped and the spacing doubles.

    Args:
        max_readings: readings of groups and total to keep.
        max_layer_readings: readings of layers to keep, at least 2.

    Raises:
        ValueError: for limits below 1 and 2.
    """

    def __init__(
        self, max_readings: int = MAX_READINGS, max_layer_readings: int = MAX_LAYER_READINGS
    ) -> None:
        if max_readings < 1:
            raise ValueError(f"max_readings must be >= 1, got {max_readings}")
        if max_layer_readings < 2:
            raise ValueError(f"max_layer_readings must be >= 2, got {max_layer_readings}")
        self._max_readings = max_readings
        self._max_layers = max_layer_readings
        self._group_rows: deque[_Row] = deque()
        self._layer_rows: list[_Row] = []
        self._later: list[Meter] = []
        self._stride = 1
        self._count = 0

    def __len__(self) -> int:
        return len(self._groups)

    def append(self, reading: Reading) -> None:
        """Add a reading."""
        self._form()
        self._add(reading)

    def append_later(self, measured: Meter) -> None:
        """Add the reading of a meter's copy: formed with others, or when the history is looked at."""
        if self._later and not measured.has_layers_of(self._later[-1]):
            self._form()
        self._later.append(measured)
        if len(self._later) >= TOGETHER:
            self._form()

    def _form(self) -> None:
        """Add the readings that were not formed yet."""
        later, self._later = self._later, []
        if later:
            later[0].form(later)
        for measured in later:
            assert measured.reading is not None
            self._add(measured.reading)

    @np.errstate(over="ignore")  # a diverging run: infinite in float32
    def _add(self, reading: Reading) -> None:
        rows = self._group_rows
        rows.append(_Row(reading.step, reading.group_names, reading.group_terms, reading.loss))
        room = min(self._max_readings, max(1, MAX_BYTES // reading.group_terms.nbytes))
        while len(rows) > room:
            rows.popleft()
        if self._count % self._stride == 0:
            terms = np.where(reading.seen, reading.terms, np.nan).astype(np.float32)
            self._layer_rows.append(_Row(reading.step, reading.names, terms))
            if len(self._layer_rows) >= self._max_layers:
                self._layer_rows = self._layer_rows[::2]
                self._stride *= 2
        self._count += 1

    @property
    def _groups(self) -> deque[_Row]:
        self._form()
        return self._group_rows

    @property
    def _layers(self) -> list[_Row]:
        self._form()
        return self._layer_rows

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles keep: formed readings."""
        self._form()
        return {**self.__dict__, "_later": []}

    def renamed(self, names: Mapping[str, str]) -> History:
        """Return a view with other layer names; layers not in ``names`` keep theirs."""
        out = copy(self)
        out._layer_rows = [
            replace(row, names=tuple(names.get(name, name) for name in row.names)) for row in self._layers
        ]
        return out

    @property
    def last_step(self) -> int:
        """Optimizer step of the newest reading, 0 if there is none."""
        return self._groups[-1].step if self._groups else 0

    def put_losses(self, steps: NDArray[np.int64], values: Array) -> None:
        """Give every reading the last loss at or before its step; a reading before all of them keeps its own.

        A reading is recorded when its step ends, and the loss of that step is often reported later.

        Args:
            steps: ``[n]``, ascending.
            values: ``[n]``, their losses.
        """
        last = np.searchsorted(steps, self.steps, side="right") - 1
        for i in np.flatnonzero(last >= 0).tolist():
            loss = float(values[last[i]])
            if self._groups[i].loss != loss:
                self._groups[i] = replace(self._groups[i], loss=loss)

    def put_standings(self, standings: Iterable[Standing]) -> None:
        """Keep where a controller's rates stand beside the last reading up to that step.

        Args:
            standings: of each rate, after the controller has seen a reading; a later one of the same rate and
                reading is valid.
        """
        for standing in standings:
            i = bisect_right(self._groups, standing.step, key=lambda row: row.step) - 1
            if i >= 0:
                row = self._groups[i]
                others = (other for other in row.standings if other.rate != standing.rate)
                self._groups[i] = replace(row, standings=(*others, standing))

    @property
    def standings(self) -> list[Standing]:
        """Where a controller's rates stood at the readings kept, oldest first; empty without a controller."""
        return [standing for row in self._groups for standing in row.standings]

    def rewind(self, step: int) -> None:
        """Forget readings after ``step``: a checkpoint was loaded and the run goes on from there."""
        self._count -= sum(row.step > step for row in self._groups)
        self._group_rows = deque(row for row in self._groups if row.step <= step)
        self._layer_rows = [row for row in self._layers if row.step <= step]

    @property
    def losses(self) -> Array:
        """Losses of the readings kept, ``[n]``, NaN where none was reported."""
        return np.array([math.nan if row.loss is None else row.loss for row in self._groups])

    @property
    def steps(self) -> NDArray[np.int64]:
        """Optimizer steps of the readings kept, ``[n]``."""
        return np.array([row.step for row in self._groups], dtype=np.int64)

    def total(self, name: str) -> Array:
        """One quantity of the whole optimizer over time, ``[n]``."""
        return self._series(name, [row.terms.sum(axis=1) for row in self._groups])

    def group(self, index: int, name: str) -> Array:
        """One quantity of one group over time, ``[n]``, NaN before the group was added.

        Raises:
            IndexError: if no reading has that group.
        """
        count = max((row.terms.shape[1] for row in self._groups), default=0)
        if not 0 <= index < count:
            raise IndexError(f"group must be >= 0 and < {count}, the number with readings, got {index}")
        none = np.full(len(Term), np.nan)
        return self._series(
            name, [row.terms[:, index] if index < row.terms.shape[1] else none for row in self._groups]
        )

    @property
    def group_names(self) -> list[str]:
        """Groups of the newest reading."""
        return list(self._groups[-1].names) if self._groups else []

    @property
    def layer_names(self) -> list[str]:
        """Layers of the newest reading."""
        return list(self._layers[-1].names) if self._layers else []

    @property
    def layer_steps(self) -> NDArray[np.int64]:
        """Optimizer steps of the layers' readings kept, ``[m]``."""
        return np.array([row.step for row in self._layers], dtype=np.int64)

    def layers(self, name: str) -> Array:
        """One quantity of every layer over time, ``[m, n_layers]``, NaN where there is none."""
        check_quantity(name)
        names = self.layer_names
        out = np.full((len(self._layers), len(names)), np.nan)
        for i, row in enumerate(self._layers):
            column = {layer: j for j, layer in enumerate(row.names)}
            values = quantities(row.terms.astype(np.float64))[name]
            out[i] = [values[column[layer]] if layer in column else np.nan for layer in names]
        return out

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield each reading as a plain dict, as in JSONL files (:func:`reading_record`).

        With a controller, ``rates`` holds where each of its rates stood.
        """
        layers = {row.step: row for row in self._layers}
        for row in self._groups:
            record = _record(row.step, row, layers.get(row.step))
            if row.standings:
                record["rates"] = {standing.rate: standing.to_dict() for standing in row.standings}
            yield record

    def export_jsonl(self, path: str | Path) -> None:
        """Write one JSON object per line: step, loss, total, groups, and layers if kept; NaN as null."""
        with Path(path).open("w", encoding="utf-8") as file:
            for record in self.records():
                file.write(json.dumps(record, allow_nan=False) + "\n")

    def export_csv(self, path: str | Path) -> None:
        """Write one line per reading and scope (total, then each group): step, scope, quantities."""
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "scope", *QUANTITIES])
            for record in self.records():
                for scope, values in {"total": record["total"], **record["groups"]}.items():
                    writer.writerow([record["step"], scope, *(values[name] for name in QUANTITIES)])

    @staticmethod
    def _series(name: str, rows: list[NDArray[Any]]) -> Array:
        check_quantity(name)
        return quantities(np.stack(rows, axis=1))[name] if rows else np.zeros(0)


def reading_record(reading: Reading, layers: bool = True) -> dict[str, Any]:
    """Turn a reading into a plain dict for JSON.

    It has ``step``, ``loss`` (None if none was reported), ``total``, ``groups`` by name, ``skipped`` and, if
    asked for, ``layers`` by name.
    """
    kept = np.where(reading.seen, reading.terms, np.nan)
    record = _record(
        reading.step,
        _Row(reading.step, reading.group_names, reading.group_terms, reading.loss),
        _Row(reading.step, reading.names, kept) if layers else None,
    )
    return {**record, "skipped": dict(reading.skipped)}


def plain_quantities(terms: Array) -> dict[str, float | None]:
    """Return the quantities of one set of terms for JSON: undefined and infinite ones become None."""
    values = vars(Quantities.of(terms))
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def _record(step: int, groups: _Row, layers: _Row | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "step": step,
        "loss": groups.loss if groups.loss is not None and math.isfinite(groups.loss) else None,
        "total": plain_quantities(groups.terms.sum(axis=1)),
        "groups": {name: plain_quantities(groups.terms[:, i]) for i, name in enumerate(groups.names)},
    }
    if layers is not None:
        record["layers"] = {
            name: plain_quantities(layers.terms[:, i].astype(np.float64))
            for i, name in enumerate(layers.names)
            if not np.isnan(layers.terms[Term.NUMEL, i])
        }
    return record
