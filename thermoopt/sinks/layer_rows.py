"""The layer rows of a record: a bounded file, which is halved when it is full."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoopt.physics import Term
from thermoopt.record import LAST, layout_line, layout_of, pieces, row_line
from thermoopt.sinks.append_file import AppendFile, gzip_member

__all__ = ["MAX_EVENTS", "MAX_ROWS", "LayerFile", "Part", "room"]

MAX_ROWS = 256
"""Rows on the schedule, as many as in a history: more than a heat map has pixels for."""

MAX_EVENTS = 128
"""Rows of readings with an event."""

MAX_BYTES = 1 << 25
"""Where many layers would make a part larger than this (some 1,700 from 128 rows on), it has fewer rows."""

MIN_ROWS = 32
"""Rows that a part has however many layers there are."""

SUPERSEDED = 32
"""Superseded rows of newest readings, after which the file is rewritten without them."""


def room(most: int, n_layers: int) -> int:
    """Return how many of ``most`` rows a part has for a number of layers."""
    return min(most, max(MIN_ROWS, MAX_BYTES // max(1, 4 * len(Term) * n_layers)))


class Part:
    """Selects the readings that become rows: all at first; when there are too many, every second is dropped.

    Attributes:
        steps: of the rows.
        gap: steps between rows, at least; 0 while every reading is one.
    """

    def __init__(self, steps: Sequence[int] = (), gap: int = 0) -> None:
        self.steps = list(steps)
        self.gap = gap

    def take(self, step: int, limit: int) -> bool:
        """Whether the reading of a step becomes a row, in a part of at most ``limit`` rows."""
        while self.steps and self.steps[-1] >= step:  # a checkpoint was loaded
            self.steps.pop()
        if self.steps and step - self.steps[-1] < self.gap:
            return False
        self.steps.append(step)
        if len(self.steps) >= limit:
            self.gap = 2 * int(np.median(np.diff(self.steps)))
            self.steps = self.steps[::2]
        return True


@dataclass(frozen=True)
class _Row:
    step: int
    why: str
    start: int
    length: int
    layout: str


class LayerFile:
    """The file of rows.

    Args:
        path: of the file.
        owner: of the file, for messages.

    Raises:
        OSError: if it cannot be written.
    """

    def __init__(self, path: Path, owner: str) -> None:
        self.path = path
        self._owner = owner
        self._gzip = path.suffix == ".gz"
        self._file = AppendFile(path, owner)
        self._rows: list[_Row] = []
        self._layouts: dict[str, tuple[int, int]] = {}
        self.gap = 0
        if self._file.size:
            self._find_rows()

    @property
    def alone(self) -> bool:
        """Whether nobody else wrote."""
        return self._file.alone

    @property
    def newest(self) -> int:
        """Step of the newest row, -1 where there is none."""
        return max((row.step for row in self._rows), default=-1)

    def append(
        self, names: Sequence[str], session: str, rows: Sequence[tuple[int, str, int, NDArray[Any]]]
    ) -> None:
        """Append rows ``(step, why, gap, terms)``, or raise with the file as it was."""
        layout = layout_of(names)
        texts = [] if layout in self._layouts else [layout_line(names)]
        texts += [row_line(layout, session, *row) for row in rows]
        data = [gzip_member(text) if self._gzip else text.encode() for text in texts]
        start = self._file.append_bytes(b"".join(data))
        for i, piece in enumerate(data):
            if i < len(data) - len(rows):
                self._layouts[layout] = (start, len(piece))
            else:
                step, why, gap, _ = rows[i - (len(data) - len(rows))]
                self._rows.append(_Row(step, why, start, len(piece), layout))
                self.gap = gap
            start += len(piece)

    def steps(self, events: bool) -> list[int]:
        """Steps of the rows of the schedule, or of events."""
        return [row.step for row in self._rows if row.why != LAST and (row.why != "") == events]

    def keep(self, rows: Sequence[int]) -> None:
        """Replace the file by one with these rows alone: written beside it, synced, renamed."""
        kept = [self._rows[i] for i in rows]
        new = self.path.with_name(self.path.name + ".new")
        layouts: dict[str, tuple[int, int]] = {}
        moved: list[_Row] = []
        try:
            with self.path.open("rb") as old, new.open("wb") as file:
                for row in kept:
                    if row.layout not in layouts:
                        layouts[row.layout] = (file.tell(), self._layouts[row.layout][1])
                        file.write(_read(old, *self._layouts[row.layout]))
                    moved.append(replace(row, start=file.tell()))
                    file.write(_read(old, row.start, row.length))
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        _sync_folder(self.path.parent)
        self._rows, self._layouts = moved, layouts
        self._file = AppendFile(self.path, self._owner)

    def halve(self, events: bool) -> None:
        """Drop every second row of a part, and of newest readings all but the newest."""
        own = [i for i, row in enumerate(self._rows) if row.why != LAST and (row.why != "") == events]
        gone = set(own[1::2])
        gone |= set([i for i, row in enumerate(self._rows) if row.why == LAST][:-1])
        self.keep([i for i in range(len(self._rows)) if i not in gone])

    def tidy(self) -> None:
        """Drop rows of newest readings that no longer are, where there are many."""
        last = [i for i, row in enumerate(self._rows) if row.why == LAST]
        if len(last) > SUPERSEDED:
            gone = set(last[:-1])
            self.keep([i for i in range(len(self._rows)) if i not in gone])

    def rewind(self, step: int) -> None:
        """Drop rows from a step on: a run goes on from before it."""
        if any(row.step >= step for row in self._rows):
            self.keep([i for i, row in enumerate(self._rows) if row.step < step])

    def _find_rows(self) -> None:
        for start, length, text in pieces(self.path):
            try:
                held = json.loads(text)
            except ValueError:
                continue  # torn
            if "names" in held:
                self._layouts.setdefault(held["layout"], (start, length))
            elif held.get("layout") in self._layouts:
                self._rows.append(_Row(held["step"], held["why"], start, length, held["layout"]))
                self.gap = held["gap"] if held["why"] == "" else self.gap


def _read(file: Any, start: int, length: int) -> bytes:
    file.seek(start)
    data: bytes = file.read(length)
    if len(data) != length:
        raise OSError(
            f"{file.name}: only {len(data)} of {length} bytes at {start}: something else changed the file"
        )
    return data


def _sync_folder(folder: Path) -> None:
    """Bring a renaming to disk, where folders can be synced."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)
