"""Reads a record: lines of every version, consecutive or simultaneous sessions, rows of layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoopt.physics import QUANTITIES, Standing, Term, quantities
from thermoopt.record.blocks import BLOCK, is_reading, numbers_of
from thermoopt.record.form import BEGUN_AT, RUN, VERSION, lasting, merged_facts, unpack_terms
from thermoopt.record.history import COLUMN, LayerRow, Trajectory, thinned, values_of
from thermoopt.record.lines import Line
from thermoopt.record.rates import rate_notes

__all__ = ["Reader", "layer_rows"]

WRITERS = "JSONLSink, ParquetSink and export_jsonl write them"


@dataclass
class _Session:
    readings: Trajectory
    started: str
    first: int
    last: int
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    begun_at: int | None = None

    def is_another_run(self, whole: Trajectory) -> bool:
        """Whether it does not go on from the readings before it; told by its start if nothing else says."""
        if not whole.segments:
            return False
        if self.begun_at is not None:
            return self.begun_at == 0
        return self.readings.segments[0].steps[0] <= whole.segments[0].steps[0]


class Reader:
    """Takes lines one by one; readings are collected and parsed many at a time.

    Args:
        where: the file, for messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._sessions: dict[str, _Session] = {}
        self._now: _Session | None = None
        self._head: Mapping[str, Any] = {}
        self._scopes: tuple[str, ...] = ()
        self._columns: list[int] | None = None
        self._waiting: list[Line] = []
        self.torn: list[int] = []
        self.lines = 0
        self._rows: list[LayerRow] = []
        self._stride, self._count = 1, 0
        self._newest_row: LayerRow | None = None

    def take(self, line: Line) -> None:
        """Add a line.

        Raises:
            ValueError: for JSON that is not a reading, and unknown versions; it may concern an earlier line.
        """
        self.lines += 1
        if line.whole and self._now is not None and is_reading(line.text):
            self._waiting.append(line)
            if len(self._waiting) == BLOCK:
                self._work_off()
            return
        self._work_off()
        self._take_one(line)

    def _work_off(self) -> None:
        """Parse the collected readings: at once if all have the same form, else one by one."""
        waiting, self._waiting = self._waiting, []
        now = self._now
        if not waiting or now is None:
            return
        width = len(QUANTITIES) if self._columns is None else len(self._columns)
        skips, scopes = self._head["skips"], len(self._scopes)
        numbers = numbers_of([line.text for line in waiting], len(skips), scopes, width)
        if numbers is None or numbers[0][0, 0] <= now.readings.newest:
            for line in waiting:
                self._take_one(line)
            return
        first, groups = numbers
        counts, total = first[-1, 2 : 2 + len(skips)], first[:, 2 + len(skips) :]
        now.skipped = dict(zip(skips, map(int, counts.tolist()), strict=True))
        place = partial(_placed, self._columns)
        steps = first[:, 0].astype(np.int64).tolist()
        now.readings.extend(steps, first[:, 1].tolist(), self._scopes, place(total), lambda: place(groups()))
        now.last = waiting[-1].number
        now.facts = lasting(now.facts)

    def _take_one(self, line: Line) -> None:
        try:
            record = json.loads(line.text) if line.whole else None
        except ValueError:  # not JSON, or not UTF-8
            record = None
            line = line._replace(whole=False)
        if not line.whole:
            self.torn.append(line.number)
        elif isinstance(record, dict) and "values" in record and self._now is not None:
            self._reading(record, line.number)
        elif isinstance(record, dict) and "thermoopt" in record:
            self._begin(record, line.number)
        elif isinstance(record, dict) and "note" in record:
            if self._now is not None and record["note"] == RUN:
                self._learn(self._now, record)
            elif self._now is not None:
                self._now.notes.append(record)
        else:
            self._named(record, line.number)

    def finish(self) -> tuple[Trajectory, dict[str, int], list[dict[str, Any]], list[str]]:
        """Return the readings, steps skipped by cause, notes (a :data:`RUN` first), and remarks on the file.

        Raises:
            ValueError: as :meth:`take`.
        """
        self._work_off()
        told: list[str] = []
        whole = Trajectory()
        skipped: dict[str, int] = {}
        notes: list[dict[str, Any]] = []
        facts: dict[str, Any] = {}
        for session in _one_at_a_time(list(self._sessions.values()), told):
            readings = session.readings
            if session.is_another_run(whole):
                told.append(
                    f"it holds another run: session {session.readings.session}, begun {session.started}, "
                    f"starts at step 0; the {len(whole)} readings before it, the last of step {whole.newest} "
                    f"(session {whole.session}), are left out. Give each run its own file"
                )
                whole, skipped, notes, facts = Trajectory(), {}, [], {}
            whole.session = session.readings.session
            if readings.segments:
                begun = readings.segments[0].steps[0]
                notes = [note for note in notes if note.get("step", 0) < begun]
            whole.follow(readings)
            skipped.update(session.skipped)
            notes += session.notes
            facts = merged_facts(lasting(facts), session.facts)
            # a run resumes from a checkpoint now and then; two runs in one file go back at every other line
            if readings.backs > 2 and readings.count < 4 * readings.backs:
                told.append(
                    f"steps occur twice: they go back {readings.backs} times in {readings.count} readings, "
                    "as if two processes had written to one file; the later reading of each step is shown"
                )
        return whole, skipped, [*([facts] if facts else []), *notes], told

    @property
    def rows(self) -> list[LayerRow]:
        """Rows of layers from lines of version 1, thinned, and the newest one."""
        newest = self._newest_row
        return [*self._rows, *([newest] if newest is not None else [])]

    # ---------------------------------------------------------------- kinds of lines

    def _begin(self, head: Mapping[str, Any], number: int) -> None:
        version = head["thermoopt"]
        if version != VERSION:
            raise ValueError(
                f"{self._where}, line {number}: a record of version {version!r}; this thermoopt reads 1 and "
                f"{VERSION}: update thermoopt"
            )
        if "layout" in head:
            raise ValueError(
                f"{self._where}: holds the layers of a record; its readings are in the file beside it"
            )
        try:
            self._scopes = tuple(map(str, head["scopes"]))
            self._columns = [COLUMN.get(name, -1) for name in head["quantities"]]
            session, skips = str(head["session"]), list(head["skips"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self._where}, line {number}: a head without {error}") from error
        if self._columns == list(range(len(QUANTITIES))):
            self._columns = None
        self._head = {"skips": skips}
        facts = dict(head[RUN]) if isinstance(head.get(RUN), dict) else {}
        begun_at = facts.pop(BEGUN_AT, None)
        held = self._sessions.get(session)
        if held is not None and held.readings.count and begun_at == 0:  # one sink, one run after another
            self._sessions[f"{session} to line {number}"] = self._sessions.pop(session)
            held = None
        if held is None:
            held = _Session(Trajectory(session), str(head.get("started", "")), number, number)
            held.begun_at = begun_at
            self._sessions[session] = held
        self._now = held
        if facts:
            self._learn(held, {"note": RUN, **facts})

    @staticmethod
    def _learn(session: _Session, facts: Mapping[str, Any]) -> None:
        """Take facts about the run; skipped steps are those up to this line."""
        session.skipped = {**session.skipped, **facts.get("skipped", {})}
        session.facts = merged_facts(session.facts, {k: v for k, v in facts.items() if k != "skipped"})

    def _reading(self, record: Mapping[str, Any], number: int) -> None:
        now = self._now
        assert now is not None
        step: Any = record.get("step")
        values: Any = record["values"]
        wrong = None
        if type(step) is not int or step < 0:
            wrong = f"step is {short(step)}"
        elif not isinstance(values, list) or len(values) != len(self._scopes):
            wrong = f"values are not those of {len(self._scopes)} scopes"
        else:
            width = len(QUANTITIES) if self._columns is None else len(self._columns)
            for row in values:
                if not isinstance(row, list) or len(row) != width or not _KINDS.issuperset(map(type, row)):
                    wrong = f"values hold {short(row)}"
        if wrong is not None:
            raise ValueError(f"{self._where}, line {number}: {wrong}, so it is not a reading ({WRITERS})")
        if self._columns is not None:
            values = _placed(self._columns, np.array(values, dtype=np.float64))
        now.readings.append(step, record.get("loss"), self._scopes, values)
        now.last = number
        now.facts = lasting(now.facts)
        counts = record.get("skipped")
        if counts:
            now.skipped = dict(zip(self._head["skips"], counts, strict=False))

    def _named(self, record: Any, number: int) -> None:
        """A line of version 1, which names every quantity."""
        what = flaw(record)
        if what is not None:
            raise ValueError(f"{self._where}, line {number}: {what}, so it is not a reading ({WRITERS})")
        if "" not in self._sessions:
            self._sessions[""] = _Session(Trajectory(), "", number, number)
        now = self._now = self._sessions[""]
        step = record["step"]
        if step <= now.readings.newest:
            self._rows = [row for row in self._rows if row.step < step]
            if self._newest_row is not None and self._newest_row.step >= step:
                self._newest_row = None
        scopes = {"total": record["total"], **record["groups"]}
        now.readings.append(step, record.get("loss"), tuple(scopes), values_of(scopes))
        now.last = number
        now.skipped.update(record.get("skipped", {}))
        now.notes += rate_notes(map(Standing.from_dict, record.get("rates", {}).values()))
        layers = record.get("layers")
        if layers is not None:
            row = LayerRow(step, tuple(layers), partial(_named_layers, layers))
            if self._count % self._stride == 0:
                self._rows.append(row.formed())
                self._rows, self._stride = thinned(self._rows, self._stride)
            self._newest_row = row
            self._count += 1


def _placed(columns: list[int] | None, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reorder the file's quantities, ``[..., n]``, as :data:`~thermoopt.physics.QUANTITIES`."""
    if columns is None:
        return values
    out = np.full((*values.shape[:-1], len(QUANTITIES) + 1), np.nan)
    out[..., columns] = values
    return out[..., :-1]  # unknown quantities went into the last column


_KINDS = {int, float, type(None)}


def _named_layers(layers: Mapping[str, Mapping[str, Any]]) -> NDArray[np.float64]:
    from thermoopt.record.history import restore_infinity

    return restore_infinity(values_of(layers))


def _one_at_a_time(sessions: list[_Session], told: list[str]) -> list[_Session]:
    """Sessions in order; of those that wrote at the same time only the one with the most readings."""
    out: list[_Session] = []
    for session in sorted((s for s in sessions if s.readings.count), key=lambda s: s.first):
        if out and session.first < out[-1].last:
            kept, gone = sorted((out[-1], session), key=lambda s: -s.readings.count)
            out[-1] = kept
            told.append(
                f"steps occur twice: two processes wrote at once (sessions {kept.readings.session}, begun "
                f"{kept.started}, and {gone.readings.session}, begun {gone.started}); only the first is "
                f"shown, which has {kept.readings.count} readings; the other has {gone.readings.count}"
            )
        else:
            out.append(session)
    return out


def layer_rows(lines: Iterable[Line], torn: list[int]) -> list[LayerRow]:
    """Read a file of rows; their quantities are computed on demand."""
    layouts: dict[str, tuple[tuple[str, ...], list[int]]] = {}
    rows: list[LayerRow] = []
    for line in lines:
        try:
            held = json.loads(line.text) if line.whole else None
        except ValueError:
            held = None
        if not isinstance(held, dict):
            torn.append(line.number)
        elif "names" in held:
            if held.get("thermoopt") != VERSION:
                raise ValueError(f"rows of layers of version {held.get('thermoopt')!r}: update thermoopt")
            known = {term.name: int(term) for term in Term}
            layouts[held["layout"]] = (tuple(held["names"]), [known.get(t, -1) for t in held["terms"]])
        elif held.get("layout") in layouts:
            names, columns = layouts[held["layout"]]
            form: Callable[[], NDArray[np.float64]] = partial(_form, held["packed"], len(names), columns)
            rows.append(LayerRow(held["step"], names, form, held["why"], held["session"]))
        else:
            torn.append(line.number)
    return rows


def _form(packed: str, n_layers: int, columns: list[int]) -> NDArray[np.float64]:
    """Quantities of all layers, ``[n_layers, len(QUANTITIES)]``."""
    terms = np.full((len(Term) + 1, n_layers), np.nan)
    terms[columns] = unpack_terms(packed, len(columns))
    formed = quantities(terms[:-1])
    return np.stack([formed[name] for name in QUANTITIES], axis=1)


def flaw(record: Any) -> str | None:
    """Return what makes a line of version 1 invalid as a reading, or None."""
    if not isinstance(record, dict):
        return f"a {type(record).__name__}"
    if "values" in record and "total" not in record:
        return "a reading before any head"
    step = record.get("step")
    if type(step) is not int or step < 0:
        return f"step is {short(step)}"
    optional = [(part, False) for part in ("layers", "skipped", "rates")]
    for part, needed in (("total", True), ("groups", True), *optional):
        if (needed or part in record) and not isinstance(record.get(part), dict):
            return f"{part} is {short(record.get(part))}"
    scopes = {"total": record["total"], **record["groups"], **record.get("layers", {})}
    for scope, values in scopes.items():
        if not isinstance(values, dict):
            return f"{scope} is {short(values)}"
        for name, value in values.items():
            if not number(value):
                return f"{name} of {scope} is {short(value)}"
    for name, value in {"loss": record.get("loss"), **record.get("skipped", {})}.items():
        if not number(value):
            return f"{name} is {short(value)}"
    return None


def number(value: object) -> bool:
    """Whether a value is a number or null."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def short(value: object) -> str:
    """Return a short text for a value."""
    return "missing" if value is None else repr(value)[:40]
