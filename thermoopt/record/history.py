"""Columns of a recorded run, as the run itself had them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoopt.physics import QUANTITIES, Standing, check_quantity

__all__ = ["LayerRow", "SavedHistory", "Trajectory"]

Array = NDArray[np.float64]

COLUMN = {name: i for i, name in enumerate(QUANTITIES)}
_BALANCE, _FALL = COLUMN["wd_balance"], COLUMN["free_fall"]
_PACK = 1024

MAX_LAYER_ROWS = 256
"""Rows of layers kept of a longer file, as many as a history keeps."""


def restore_infinity(values: Array) -> Array:
    """Restore infinities, which JSON cannot hold, in place: ``[..., len(QUANTITIES)]``.

    Weight decay without any source against it is a free fall of 1 or more and an infinite balance.
    """
    balance, fall = values[..., _BALANCE], values[..., _FALL]
    with np.errstate(invalid="ignore"):
        balance[np.isnan(balance) & (fall >= 1)] = math.inf
    return values


@dataclass(frozen=True)
class LayerRow:
    """Quantities of all layers at one step: ``values[i]`` are those of ``names[i]``, computed on demand.

    Attributes:
        step: of the reading.
        names: of the layers.
        values: ``[n_layers, len(QUANTITIES)]``, or a function that returns them.
        why: what happened at that reading; empty for rows of the schedule.
        session: that wrote it; empty if the file does not say.
    """

    step: int
    names: tuple[str, ...]
    values: Array | Callable[[], Array]
    why: str = ""
    session: str = ""

    def formed(self) -> LayerRow:
        """Return the row with its values computed."""
        return self if isinstance(self.values, np.ndarray) else replace(self, values=self.values())


@dataclass
class _Segment:
    """Readings that have the same scopes."""

    scopes: tuple[str, ...]
    session: str
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    pending: list[Any] = field(default_factory=list)
    totals: list[Array] = field(default_factory=list)
    groups: list[Array | Callable[[], Array]] = field(default_factory=list)

    def add(self, total: Array, groups: Array | Callable[[], Array]) -> None:
        self.pack()
        self.totals.append(restore_infinity(np.ascontiguousarray(total)))
        self.groups.append(groups)

    def pack(self) -> None:
        if self.pending:
            block = np.array(self.pending, dtype=np.float64).reshape(-1, len(self.scopes), len(QUANTITIES))
            self.pending = []
            self.add(block[:, 0], restore_infinity(block[:, 1:]))

    def total(self) -> Array:
        """Quantities of the total in all readings, ``[n, len(QUANTITIES)]``."""
        self.pack()
        if len(self.totals) != 1:
            empty = np.zeros((0, len(QUANTITIES)))
            self.totals = [np.concatenate(self.totals) if self.totals else empty]
        return self.totals[0]

    def by_group(self) -> Array:
        """Quantities of the groups in all readings, ``[n, n_groups, len(QUANTITIES)]``."""
        self.pack()
        if len(self.groups) != 1 or not isinstance(self.groups[0], np.ndarray):
            formed = [g if isinstance(g, np.ndarray) else restore_infinity(g()) for g in self.groups]
            empty = np.zeros((0, len(self.scopes) - 1, len(QUANTITIES)))
            self.groups = [np.concatenate(formed) if formed else empty]
        groups = self.groups[0]
        assert isinstance(groups, np.ndarray)
        return groups

    def values(self) -> Array:
        """Quantities of all scopes in all readings, ``[n, n_scopes, len(QUANTITIES)]``."""
        return np.concatenate([self.total()[:, None], self.by_group()], axis=1)

    def keep(self, part: slice) -> None:
        self.totals, self.groups = [self.total()[part]], [self.by_group()[part]]
        self.steps, self.losses = self.steps[part], self.losses[part]


class Trajectory:
    """Readings of one session in the order of its file; if steps go back, later readings are dropped."""

    def __init__(self, session: str = "") -> None:
        self.session = session
        self.segments: list[_Segment] = []
        self.newest = -1
        self.backs = 0
        self.count = 0

    def __len__(self) -> int:
        return sum(len(segment.steps) for segment in self.segments)

    def append(self, step: int, loss: float | None, scopes: tuple[str, ...], values: Any) -> None:
        """Append a reading; its values, ``[n_scopes, len(QUANTITIES)]``, are lists or an array."""
        if step <= self.newest:
            self.rewind(step - 1)
            self.backs += 1
        segment = self._segment(scopes)
        segment.steps.append(step)
        segment.losses.append(math.nan if loss is None else loss)
        segment.pending.append(values)
        if len(segment.pending) >= _PACK:
            segment.pack()
        self.newest = step
        self.count += 1

    def extend(
        self,
        steps: list[int],
        losses: list[float],
        scopes: tuple[str, ...],
        total: Array,
        groups: Callable[[], Array],
    ) -> None:
        """Append later readings; a loss of NaN stands for none.

        Args:
            steps, losses: ``n`` of them.
            scopes: total and groups.
            total: ``[n, len(QUANTITIES)]``.
            groups: returns ``[n, n_groups, len(QUANTITIES)]``; called when they are needed.
        """
        segment = self._segment(scopes)
        segment.add(total, groups)
        segment.steps += steps
        segment.losses += losses
        self.newest = steps[-1]
        self.count += len(steps)

    def _segment(self, scopes: tuple[str, ...]) -> _Segment:
        if not self.segments or self.segments[-1].scopes != scopes:
            self.segments.append(_Segment(scopes, self.session))
        return self.segments[-1]

    def rewind(self, step: int) -> None:
        """Drop readings after a step."""
        while self.segments and self.segments[-1].steps and self.segments[-1].steps[-1] > step:
            segment = self.segments[-1]
            segment.keep(slice(0, int(np.searchsorted(segment.steps, step, side="right"))))
            if not segment.steps:
                self.segments.pop()
        self.newest = self.segments[-1].steps[-1] if self.segments else -1

    def follow(self, other: Trajectory) -> None:
        """Continue with another session from its first step."""
        if other.segments:
            self.rewind(other.segments[0].steps[0] - 1)
            self.segments += other.segments
            self.newest = self.segments[-1].steps[-1]

    def since(self, step: int) -> None:
        """Drop readings before a step."""
        for segment in self.segments:
            segment.keep(slice(int(np.searchsorted(segment.steps, step)), None))
        self.segments = [segment for segment in self.segments if segment.steps]


class SavedHistory:
    """Columns of a recorded run, as :class:`thermoopt.History` has them.

    Quantities that did not exist when the file was written are NaN. Rows of layers are those of the
    schedule and the newest one; :meth:`with_events` adds those of readings at which something happened.

    Args:
        readings: of the run.
        rows: of layers, in the order of the file; rows that belong to no reading are left out.

    Attributes:
        standings: where a controller's rates stood, oldest first.
    """

    def __init__(self, readings: Trajectory, rows: Sequence[LayerRow] = ()) -> None:
        self._segments = readings.segments
        valid = {s: segment.session for segment in self._segments for s in segment.steps}
        rows = [row for row in rows if valid.get(row.step, None) in (row.session, "")]
        self._layers, self._events = _sorted_rows(rows)
        self.standings: list[Standing] = []

    def __len__(self) -> int:
        return sum(len(segment.steps) for segment in self._segments)

    @property
    def steps(self) -> NDArray[np.int64]:
        """Optimizer steps of the readings, ``[n]``."""
        return np.array([s for segment in self._segments for s in segment.steps], dtype=np.int64)

    @property
    def losses(self) -> Array:
        """Loss of the readings, ``[n]``, NaN where none was reported."""
        return np.array([x for segment in self._segments for x in segment.losses], dtype=np.float64)

    def total(self, name: str) -> Array:
        """One quantity of the whole optimizer over time, ``[n]``."""
        return self._scope(0, name)

    @property
    def group_names(self) -> list[str]:
        """Groups of the newest reading."""
        return list(self._segments[-1].scopes[1:]) if self._segments else []

    def group(self, index: int, name: str) -> Array:
        """One quantity of one group over time, ``[n]``, NaN before the group was added.

        Raises:
            IndexError: if no reading has that group.
        """
        check_quantity(name)
        count = max((len(segment.scopes) - 1 for segment in self._segments), default=0)
        if not 0 <= index < count:
            raise IndexError(f"group must be >= 0 and < {count}, the number with readings, got {index}")
        return self._scope(index + 1, name)

    @property
    def layer_names(self) -> list[str]:
        """Layers of the newest reading that holds layers."""
        return list(self._layers[-1].names) if self._layers else []

    @property
    def layer_steps(self) -> NDArray[np.int64]:
        """Steps of the layers' rows, ``[m]``."""
        return np.array([row.step for row in self._layers], dtype=np.int64)

    def layers(self, name: str) -> Array:
        """One quantity of every layer over time, ``[m, n_layers]``, NaN where there is none."""
        check_quantity(name)
        self._layers = [row.formed() for row in self._layers]
        names = self.layer_names
        out = np.full((len(self._layers), len(names)), np.nan)
        column = COLUMN[name]
        for i, row in enumerate(self._layers):
            assert isinstance(row.values, np.ndarray)
            if row.names == tuple(names):
                out[i] = row.values[:, column]
                continue
            place = {layer: j for j, layer in enumerate(row.names)}
            out[i] = [row.values[place[layer], column] if layer in place else np.nan for layer in names]
        return out

    @property
    def events(self) -> list[tuple[int, str]]:
        """Steps of the rows that are kept because something happened, and what it was."""
        return [(row.step, row.why) for row in self._events]

    def with_events(self) -> SavedHistory:
        """Return the history with the rows of events among those of the schedule."""
        both = {row.step: row for row in [*self._events, *self._layers]}
        out = SavedHistory(Trajectory())
        out._segments, out._events, out.standings = self._segments, self._events, self.standings
        out._layers = [both[step] for step in sorted(both)]
        return out

    def only(self, names: Sequence[str]) -> SavedHistory:
        """Return the history with these layers alone."""
        out = SavedHistory(Trajectory())
        out._segments, out.standings = self._segments, self.standings
        out._layers = [_only(row, set(names)) for row in self._layers]
        out._events = [_only(row, set(names)) for row in self._events]
        return out

    def start_norms(self) -> dict[str, float]:
        """Squared norm of every layer, from the first row that has the layer."""
        norms: dict[str, float] = {}
        column = COLUMN["param_norm"]
        for row in self._layers:
            if all(name in norms for name in row.names):
                continue
            values = row.formed().values
            assert isinstance(values, np.ndarray)
            for name, norm in zip(row.names, values[:, column].tolist(), strict=True):
                if not math.isnan(norm):
                    norms.setdefault(name, norm**2)
        return norms

    def _scope(self, index: int, name: str) -> Array:
        check_quantity(name)
        column, parts = COLUMN[name], []
        for segment in self._segments:
            if index == 0:
                parts.append(segment.total()[:, column])
            elif index < len(segment.scopes):
                parts.append(segment.by_group()[:, index - 1, column])
            else:
                parts.append(np.full(len(segment.steps), np.nan))
        return np.concatenate(parts) if parts else np.zeros(0)


def _sorted_rows(rows: Sequence[LayerRow]) -> tuple[list[LayerRow], list[LayerRow]]:
    """Split rows into those of the schedule (with the newest) and of events; the last one per step counts."""
    schedule = {row.step: row for row in rows if row.why == ""}
    events = {row.step: row for row in rows if row.why not in ("", "last")}
    newest = max(rows, key=lambda row: row.step, default=None)
    if newest is not None:
        schedule.setdefault(newest.step, newest)
    return [schedule[s] for s in sorted(schedule)], [events[s] for s in sorted(events)]


def _only(row: LayerRow, names: set[str]) -> LayerRow:
    row = row.formed()
    assert isinstance(row.values, np.ndarray)
    index = [i for i, name in enumerate(row.names) if name in names]
    return replace(row, names=tuple(row.names[i] for i in index), values=row.values[index])


def thinned(rows: list[Any], stride: int) -> tuple[list[Any], int]:
    """Halve the rows once there are as many as a history keeps; return them and the distance between them."""
    return (rows[::2], 2 * stride) if len(rows) >= MAX_LAYER_ROWS else (rows, stride)


def values_of(scopes: Mapping[str, Mapping[str, Any]]) -> Array:
    """Quantities of scopes given by name, ``[n_scopes, len(QUANTITIES)]``."""
    values = np.full((len(scopes), len(QUANTITIES)), np.nan)
    for row, held in zip(values, scopes.values(), strict=True):
        for name, value in held.items():
            column = COLUMN.get(name)
            if column is not None and value is not None:
                row[column] = value
    return values
