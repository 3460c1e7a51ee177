"""A run read back from its record: what diagnosis and pictures need, without the model."""

from __future__ import annotations

import fnmatch
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoopt.param_groups import detect_layer_type
from thermoopt.physics import LR
from thermoopt.record.form import facts_of, layer_path
from thermoopt.record.history import LayerRow, SavedHistory
from thermoopt.record.lines import Line, is_parquet, lines
from thermoopt.record.rates import standings_in
from thermoopt.record.reader import WRITERS, Reader, layer_rows

__all__ = ["SavedHistory", "SavedLosses", "SavedRun"]

Array = NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SavedLosses:
    """Losses on record.

    Attributes:
        steps: ``[n]`` of the readings that hold one.
        values: ``[n]`` losses.
    """

    steps: NDArray[np.int64]
    values: Array


@dataclass
class SavedRun:
    """The record of a run read from file; :func:`thermoopt.diagnose` accepts it like an observer.

    Attributes:
        path: the file.
        history: its readings.
        losses: the recorded losses, which may be replaced by a fuller list.
        start_norms: squared norm of each layer at the start, or in its first reading if not on record.
        skipped: number of steps that were due to be measured but entered no average, by cause.
        frozen, bad_losses: layers not trained, number of losses not finite; empty and 0 if not on record.
        notes: events: dicts with ``note`` (``action``, ``spike``, ``skip`` or a custom one) and ``step``.
        facts: what else the record says: ``ema_steps``, ``steps`` taken, ``matrices``, ``rate_kind``.
    """

    path: Path
    history: SavedHistory
    losses: SavedLosses
    start_norms: dict[str, float]
    skipped: dict[str, int] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    bad_losses: int = 0
    notes: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        since: int | None = None,
        layers: str | None = None,
        progress: Progress | None = None,
    ) -> SavedRun:
        """Read a file written by JSONLSink, ParquetSink or an export.

        If steps go back, the run was resumed from there: readings recorded at or after that step are
        discarded. Layer rows are in a file beside it (``run.layers.jsonl.gz`` for ``run.jsonl.gz``) and are
        read with it; without that file the run has no layers.

        Args:
            path: path of the file.
            since: leave out readings before this step; initial norms are still those of the start.
            layers: leave out layers whose name does not match; ``*`` and ``?`` as in a shell, several
                patterns separated by commas.
            progress: called with the number of bytes read and the total.

        Raises:
            OSError: if it cannot be read.
            ValueError: if it is empty, if a line is JSON but not a reading (the message names the line),
                or if ``since`` or ``layers`` leaves nothing.

        Warns:
            RuntimeWarning: naming torn lines (a crash cuts off the last one), which are skipped; and if two
                processes wrote to one file.
        """
        path = Path(path)
        reader = Reader(str(path))
        told: list[str] = []
        rows: list[LayerRow] = []
        if is_parquet(path):
            from thermoopt.record.columns import read_parquet

            readings, skipped, notes, rows, told = read_parquet(path, progress)
        else:
            for line in _watched(path, progress):
                reader.take(line)
            readings, skipped, notes, told = reader.finish()
            rows = reader.rows
            if not readings.count and not readings.segments:
                why = f"none of {len(reader.torn)} lines is JSON" if reader.torn else "the file is empty"
                if reader.lines > len(reader.torn):
                    why = "it holds no reading yet"
                raise ValueError(f"{path}: {why}; it must be a file of readings ({WRITERS})")
            if reader.torn:
                told.append(_torn(reader.torn))
        rows += _beside(path, told)
        history = SavedHistory(readings, rows)
        norms, names = history.start_norms(), set(history.layer_names)
        if since is not None:
            newest = readings.newest
            readings.since(since)
            history = SavedHistory(readings, rows)
            if not len(history):
                raise ValueError(f"{path}: no reading since step {since}; the newest is of step {newest}")
        if layers is not None:
            history = history.only(_matching(history.layer_names, layers, path))
        for what in told:
            warnings.warn(f"{path}: {what}", RuntimeWarning, stacklevel=2)
        facts, notes = facts_of(notes)
        standings, notes = standings_in(notes)
        history.standings = [s for s in standings if s.step >= (since or 0)]
        values = history.losses
        known = np.isfinite(values)
        losses = SavedLosses(history.steps[known], values[known])
        return cls(
            path,
            history,
            losses if since is not None else _with_first(losses, facts.get("first_loss")),
            {
                **norms,
                **{k: v for k, v in facts.get("start_norms", {}).items() if k in names and v is not None},
            },
            skipped,
            frozenset(facts.get("frozen", ())),
            facts.get("bad_losses", 0),
            [n for n in notes if n.get("step", 0) >= (since or 0)],
            facts,
        )

    @property
    def reading(self) -> None:
        """None: a file holds quantities, not the sums they were computed from."""
        return None

    @property
    def steps(self) -> int:
        """Optimizer steps on record: that of the last reading, or more where those after it were skipped."""
        return max(int(self.history.steps[-1]), int(self.facts.get("steps", 0)))

    @property
    def length(self) -> int | None:
        """Step at which the learning rate has been cooled; None if none is on record."""
        return self.facts.get("length")

    @property
    def ended(self) -> bool:
        """Whether the process that wrote the last reading ended or closed the record."""
        return bool(self.facts.get("ended"))

    @property
    def ema_steps(self) -> float | None:
        """Length of the averages in steps, None if the record does not say."""
        return self.facts.get("ema_steps")

    @property
    def rate_kind(self) -> str:
        """What ``lr_eff`` stands for, lr if the record does not say (:data:`thermoopt.physics.LR`)."""
        return self.facts.get("rate_kind", LR)

    @cached_property
    def layer_types(self) -> dict[str, str]:
        """Type of each layer from its name alone, since there is no model."""
        return {name: detect_layer_type(name) for name in self.history.layer_names}

    @cached_property
    def matrices(self) -> frozenset[str]:
        """Layers of two or more dimensions; where the record does not say, all except norms and biases."""
        if "matrices" in self.facts:
            return frozenset(self.facts["matrices"]).intersection(self.history.layer_names)
        return frozenset(
            name
            for name, kind in self.layer_types.items()
            if kind != "norm" and "bias" not in name.rpartition(".")[2]
        )


def _with_first(losses: SavedLosses, first: tuple[int, float] | None) -> SavedLosses:
    """Add the very first loss, which comes before the first reading: all others are compared with it."""
    if first is None or not len(losses.steps) or first[0] >= losses.steps[0]:
        return losses
    steps, values = np.insert(losses.steps, 0, first[0]), np.insert(losses.values, 0, first[1])
    return SavedLosses(steps, values)


def _watched(path: Path, progress: Progress | None) -> Iterator[Line]:
    """Yield the lines of a file and report progress from time to time."""
    size = os.stat(path).st_size
    for i, line in enumerate(lines(path)):
        if progress is not None and i % 64 == 0:
            progress(line.at, size)
        yield line
    if progress is not None:
        progress(size, size)


def _beside(path: Path, told: list[str]) -> list[LayerRow]:
    """Return the rows of layers in the file next to a record."""
    beside = layer_path(path)
    if beside == path or not beside.exists():
        return []
    torn: list[int] = []
    try:
        rows = layer_rows(lines(beside), torn)
    except ValueError as error:
        told.append(f"{beside.name}: {error}; layers are left out")
        return []
    if torn:
        told.append(f"{beside.name}: {_torn(torn)}")
    return rows


def _torn(numbers: list[int]) -> str:
    some = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
    what = f"line {some} is torn" if len(numbers) == 1 else f"lines {some} are torn"
    return f"{what}: skipped"


def _matching(names: list[str], patterns: str, path: Path) -> list[str]:
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    found = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)]
    if not found:
        some = ", ".join([f"{len(names)}: {names[0]}", *names[1:3]]) if names else "none"
        more = ", …" if len(names) > 3 else ""
        raise ValueError(f"{path}: no layer matches {patterns!r}; it has {some}{more}")
    return found
