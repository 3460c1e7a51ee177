"""What is kept of each reading in a record: decided in the training thread, from a handful of numbers."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoopt.account.reading import Reading
from thermoopt.physics import Standing, Term
from thermoopt.record import BEGUN_AT, ENDED, LAST
from thermoopt.sinks.layer_rows import LayerFile, Part, room

__all__ = ["Facts", "Item", "Schedule"]

Array = NDArray[np.float64]

Facts = Callable[[Any, bool], Mapping[str, Any]]
"""Says of a run what readings do not, as plain data; asked whether what is on a device may be waited for."""

SPIKE = 8.0
"""Mean absolute deviations above its running mean from which on the logarithm of the loss, or of the squared
norm of the gradient, is a spike: 6.4 standard deviations of a Gaussian, which no run of a million reaches."""

SPIKE_RATIO = 1.5
"""What a spike is at least, as a ratio: where a series hardly moves, its deviations are no measure."""

SPIKE_MEMORY = 32
"""Readings that the running mean and deviation look back on, and those before the first is called a spike."""


@dataclass(frozen=True)
class Item:
    """What the thread gets of a reading: small, but for those that become rows of layers.

    Attributes:
        step, loss, skipped: of the reading.
        groups: names.
        group_terms: ``[len(Term), n_groups]``.
        happened: what makes this reading special: kinds and what there is to say of each.
        whys: one for each row of layers that it gets: empty for that of the schedule.
        gap: of the schedule.
        names, terms: of the layers, where it is to have a row.
        no_reading: whether the reading itself went out before.
        facts: of the run: those known before its first reading, or what has changed since.
        standings: where a controller's rates stand, since the item before.
    """

    step: int
    loss: float | None
    skipped: Mapping[str, int]
    groups: tuple[str, ...]
    group_terms: Array
    happened: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    whys: tuple[str, ...] = ()
    gap: int = 0
    names: tuple[str, ...] = ()
    terms: Array | None = None
    no_reading: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    standings: tuple[Standing, ...] = ()


class _Course:
    """Running mean and mean absolute deviation of the logarithm of a positive series."""

    def __init__(self) -> None:
        self._mean = self._spread = 0.0
        self._count = 0

    def spikes(self, value: float | None) -> float | None:
        """Take a value in; return its ratio to the mean if it is a spike."""
        if value is None or not math.isfinite(value) or value <= 0:
            return math.inf if value is not None and value > 0 else None
        x = math.log(value)
        above = x - self._mean
        spike = self._count >= SPIKE_MEMORY and above > max(SPIKE * self._spread, math.log(SPIKE_RATIO))
        self._count += 1
        share = 1 / min(self._count, SPIKE_MEMORY)
        self._spread += share * (abs(above) - self._spread) if self._count > 1 else 0.0
        self._mean += share * above
        return math.exp(above) if spike else None


class Schedule:
    """What becomes of each reading: decided in the training thread, from a handful of numbers.

    Args:
        rows: those on file; None keeps none.
        max_rows, max_events: rows of schedule and events, at most.
    """

    def __init__(self, rows: LayerFile | None, max_rows: int, max_events: int) -> None:
        self._layers = rows is not None
        self._rows = Part(rows.steps(events=False), rows.gap) if rows is not None else Part()
        self._events = Part(rows.steps(events=True)) if rows is not None else Part()
        self._most = (max_rows, max_events)
        self._skipped: Mapping[str, int] | None = None
        self._courses = {"loss": _Course(), "gradient": _Course()}
        self._marks: list[tuple[str, Mapping[str, Any]]] = []
        self._standings: list[Standing] = []
        self.newest: Reading | None = None
        self._newest_kept = True
        self._sources: dict[Facts, Callable[[], Any]] = {}
        self._told: dict[str, Any] = {}
        self._step: int | None = None
        self._introduced = self._ended = False

    def introduce(self, run: Any, facts: Facts) -> None:
        """Take where else to ask for facts of the run; what a later one says is valid."""
        self._sources[facts] = weakref.ref(run)
        self._introduced = True
        self._told.pop(BEGUN_AT, None)

    def _changed(self, settled: bool) -> dict[str, Any]:
        """Facts that have changed since they were told, or since the newest reading said otherwise."""
        known: dict[str, Any] = {}
        for facts, source in self._sources.items():
            if (run := source()) is not None:
                known.update(facts(run, settled))
        if settled:  # a head's alone
            known.pop(BEGUN_AT, None)
        changed = {name: value for name, value in known.items() if self._told.get(name) != value}
        self._told.update(changed)
        return changed

    def last_facts(self, ended: bool = False) -> Item | None:
        """Return what has changed or happened since the newest reading, once there is one.

        Args:
            ended: whether no reading is expected any more.
        """
        if self._step is None:
            return None
        happened, standings, changed = tuple(self._marks), self._stood(), self._changed(settled=True)
        if ended and not self._ended:
            changed[ENDED] = self._ended = True
        self._marks.clear()
        if not (happened or standings or changed):
            return None
        none = np.zeros((len(Term), 0))
        about: dict[str, Any] = {"happened": happened, "facts": changed, "standings": standings}
        return Item(self._step, None, {}, (), none, no_reading=True, **about)

    def mark(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Keep what happened for the next reading."""
        self._marks.append((kind, fields))

    def stand(self, standings: Iterable[Standing]) -> None:
        """Keep where rates stand for the next item."""
        self._standings.extend(standings)

    def _stood(self) -> tuple[Standing, ...]:
        standings = tuple(self._standings)
        self._standings.clear()
        return standings

    def item(self, reading: Reading) -> Item:
        """Decide what is kept of a reading."""
        happened = (*self._marks, *self._noticed(reading))
        self._marks.clear()
        item = Item(
            reading.step,
            reading.loss,
            reading.skipped,
            reading.group_names,
            reading.group_terms,
            happened,
            facts=self._changed(settled=False) if self._introduced else {},
            standings=self._stood(),
        )
        self._step, self._introduced, self._ended = reading.step, False, False
        self._told.update(steps=reading.step, skipped=dict(reading.skipped))
        if not self._layers:
            return item
        rows, events = (room(most, len(reading.names)) for most in self._most)
        whys = [""] if self._rows.take(reading.step, rows) else []
        if happened and self._events.take(reading.step, events):
            whys.append(happened[0][0])
        self.newest, self._newest_kept = reading, bool(whys)
        if not whys:
            return item
        return replace(
            item, whys=tuple(whys), gap=self._rows.gap, names=reading.names, terms=seen_terms(reading)
        )

    def last_row(self) -> Item | None:
        """Return the row of the newest reading, unless it has one."""
        reading, self._newest_kept = None if self._newest_kept else self.newest, True
        if reading is None:
            return None
        return Item(
            reading.step,
            None,
            {},
            reading.group_names,
            reading.group_terms,
            whys=(LAST,),
            names=reading.names,
            terms=seen_terms(reading),
            no_reading=True,
        )

    def _noticed(self, reading: Reading) -> list[tuple[str, Mapping[str, Any]]]:
        out: list[tuple[str, Mapping[str, Any]]] = []
        if self._skipped is not None:
            more = {c: n - self._skipped.get(c, 0) for c, n in reading.skipped.items()}
            more = {c: n for c, n in more.items() if n > 0}
            if more:
                out.append(("skip", more))
        self._skipped = reading.skipped
        gradient = float(reading.group_terms[Term.GG].sum())
        for name, value in (("loss", reading.loss), ("gradient", gradient)):
            ratio = self._courses[name].spikes(value)
            if ratio is not None:
                out.append(("spike", {"of": name, "ratio": float(f"{ratio:.3g}")}))
        return out


def seen_terms(reading: Reading) -> Array:
    """Terms of the layers, NaN for those never seen."""
    return np.where(reading.seen, reading.terms, np.nan)
