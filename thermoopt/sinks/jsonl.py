"""JSONLSink: the record of a run, small for a run of any length, written in the background."""

from __future__ import annotations

import datetime
import json
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thermoopt.account.reading import Reading
from thermoopt.physics import Standing
from thermoopt.record import (
    BEGUN_AT,
    LAST,
    RATES,
    RUN,
    VERSION,
    head_line,
    layer_path,
    lines,
    note_line,
    rate_notes,
    reading_lines,
)
from thermoopt.sinks.append_file import AppendFile
from thermoopt.sinks.beside import Pipe
from thermoopt.sinks.layer_rows import MAX_EVENTS, MAX_ROWS, LayerFile, room
from thermoopt.sinks.schedule import Item, Schedule

__all__ = ["FileSink", "JSONLSink", "RecordWriter", "check_limits"]


_Layout = tuple[tuple[str, ...], tuple[str, ...]]
"""What a head names: groups, and causes to skip."""


class RecordWriter:
    """Writes items to the file of readings and the file of layers.

    Args:
        path: of the readings.
        owner: for messages.
        layers: whether there is a file of layers.
        max_rows, max_events: its rows.
    """

    def __init__(self, path: Path, owner: str, layers: bool, max_rows: int, max_events: int) -> None:
        self._arguments = (path, owner, layers)
        self._most = (max_rows, max_events)
        self.news: list[str] = []
        self._open()

    def _open(self) -> None:
        path, owner, layers = self._arguments
        self._file = AppendFile(path, owner)
        self.rows = LayerFile(layer_path(path), owner) if layers else None
        self.session = uuid.uuid4().hex[:8]
        self._started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self._head: _Layout | None = None
        self._step = max((self.rows.newest if self.rows is not None else -1), -1)

    def restart(self) -> None:
        """Open the files again, as a session of this process."""
        self._open()

    def write(self, items: list[Item]) -> None:
        """Write items; raises OSError where the file of readings cannot take them."""
        readings = [item for item in items if not item.no_reading]
        text, head = self._text(readings) if readings else ("", self._head)
        for item in (i for i in items if i.no_reading and head is not None):
            text += note_line(RUN, item.step, item.facts) if item.facts else ""
            text += _notes([item])
        if text:
            self._file.append(text)
        self._head = head
        try:
            self._write_rows(items)
        except OSError as error:
            self.news.append(f"rows of layers could not be written ({error}); readings still are")
        self._step = items[-1].step

    def settle(self) -> None:
        """Close the gzip member."""
        self._file.settle()

    def end(self) -> None:
        """Nothing more comes, for now."""

    def _text(self, items: list[Item]) -> tuple[str, _Layout | None]:
        """Lines of readings, and what their last head says."""
        self._file.look()
        if not self._file.alone and self._head is not None:
            self._tell_of_others()
        head = None if self._file.fresh else self._head
        out: list[str] = []
        for layout, block in _alike(items):
            facts = block[0].facts  # of the first reading of a session or a run
            if facts.get(BEGUN_AT) == 0 and (out or self._held()):
                self._tell_of_the_run_before()
            if layout != head or facts:
                out.append(head_line(self.session, self._started, *layout, facts))
                head = layout
            out.append(_notes(block))
            out.append(
                reading_lines(
                    [item.step for item in block],
                    [item.loss for item in block],
                    [list(item.skipped.values()) for item in block],
                    [item.group_terms for item in block],
                )
            )
        return "".join(out), head

    def _write_rows(self, items: list[Item]) -> None:
        if self.rows is None:
            return
        for item in items:
            if item.step <= self._step and not item.no_reading:  # a checkpoint was loaded
                self.rows.rewind(item.step)
            self._step = item.step
            if item.terms is None:
                continue
            rows = [(item.step, why, item.gap, item.terms) for why in item.whys]
            self.rows.append(item.names, self.session, rows)
            for why in item.whys:
                self._keep_to_limits(self.rows, why, len(item.names))
        if not self.rows.alone:
            self._tell_of_others()
            self.rows = None

    def _keep_to_limits(self, rows: LayerFile, why: str, n_layers: int) -> None:
        events = why != ""
        if why == LAST:
            rows.tidy()
        elif len(rows.steps(events)) >= room(self._most[events], n_layers):
            rows.halve(events)

    def _held(self) -> bool:
        """Whether the file holds readings."""
        return self._file.size > 0

    def _tell_of_the_run_before(self) -> None:
        self.news.append(
            f"{self._arguments[0]} holds a run already, and another begins at step 0: only the newest run in "
            "a file is shown. Give each run its own file, or load the checkpoint to go on with a run"
        )

    def _tell_of_others(self) -> None:
        self.news.append(
            f"another process or sink writes to {self._file.path}: steps will occur twice in it. Give each "
            "run its own file, and write it on one rank only"
        )


def _notes(items: Sequence[Item]) -> str:
    """Lines of what happened and where rates stood: before the readings, which are read at once."""
    happened = [note_line(kind, item.step, fields) for item in items for kind, fields in item.happened]
    rates = rate_notes(standing for item in items for standing in item.standings)
    return "".join(
        [*happened, *(json.dumps(n, allow_nan=False, separators=(",", ":")) + "\n" for n in rates)]
    )


def _alike(items: Sequence[Item]) -> list[tuple[_Layout, list[Item]]]:
    """Split items into runs of the same groups and causes to skip."""
    out: list[tuple[_Layout, list[Item]]] = []
    for item in items:
        layout = (item.groups, tuple(item.skipped))
        if not out or out[-1][0] != layout:
            out.append((layout, []))
        out[-1][1].append(item)
    return out


class FileSink:
    """Base of sinks that write files: a writing thread, the readings not yet written, flush and close.

    A copy, pickled or deep-copied, opens its files when it is first used: the original may still write them.
    Subclasses say how in ``_open``, from ``_arguments``.
    """

    keeps_facts = True
    """Whether the file has a place for what readings do not say of a run."""

    _arguments: Mapping[str, Any]
    _opened: tuple[Pipe, Schedule] | None = None
    _offering: tuple[weakref.ref[Any] | None, weakref.ref[Any] | None] = (None, None)
    _shared = False

    def _open(self) -> tuple[Pipe, Schedule]:
        raise NotImplementedError

    def _parts(self) -> tuple[Pipe, Schedule]:
        if self._opened is None:
            self._opened = self._open()
            self._finish = weakref.finalize(self, finish, *self._opened)
        return self._opened

    @property
    def _pipe(self) -> Pipe:
        return self._parts()[0]

    @property
    def _schedule(self) -> Schedule:
        return self._parts()[1]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy what the sink was made with: what waits to be written stays with the original."""
        return unopened, (type(self), self._arguments)

    def write(self, reading: Reading) -> None:
        """Queue one reading; it is on file after 2 seconds, 32 readings or :meth:`flush`."""
        self._pipe.put(self._schedule.item(reading))

    def offered_by(self, queue: Any) -> None:
        """Warn once if two queues write alternately: nobody could tell the steps of two optimizers apart.

        Args:
            queue: the queue of the coming reading. Two that follow each other, as when a cell is run again,
                are fine.
        """
        before, last = self._offering
        if last is not None and last() is queue:
            return
        if before is not None and before() is queue and not self._shared:
            self._shared = True
            warnings.warn(
                f"one {type(self).__name__} receives readings of two optimizers alternately, which cannot be "
                "told apart in its file: give each optimizer a sink with its own file",
                RuntimeWarning,
                stacklevel=4,
            )
        self._offering = last, weakref.ref(queue)

    def mark(self, kind: str, /, **fields: Any) -> None:
        """Add a note to the record; the next reading keeps its layers.

        Args:
            kind: one word: ``action``, ``finding``, ``restart`` or a custom one.
            fields: plain data for the note.

        Raises:
            ValueError: for a kind that is empty or means something else in the file.
        """
        if not kind or kind in (LAST, RATES, RUN):
            raise ValueError(f"kind must be a word other than {LAST!r}, {RATES!r} and {RUN!r}, got {kind!r}")
        self._schedule.mark(kind, fields)

    def stand(self, standings: Iterable[Standing]) -> None:
        """Add to the record where a controller's rates stand after a reading.

        Args:
            standings: that of each rate (:attr:`thermoopt.controllers.Controller.standing`).
        """
        self._schedule.stand(standings)

    def introduce(self, run: Any, facts: Callable[[Any, bool], Mapping[str, Any]]) -> None:
        """Keep in the record what readings do not say: norms at the start, steps skipped without a reading.

        Args:
            run: kept by a weak reference.
            facts: called with ``run`` and whether to wait for counts; returns plain data. It is asked for the
                first reading, without counts, and by :meth:`flush`; what has changed is written. Of two that
                are introduced, an optimizer and its observer, what the later one says is valid.
        """
        if self.keeps_facts:
            self._schedule.introduce(run, facts)

    def flush(self) -> None:
        """Wait until every reading is on file, the newest with its layers."""
        if self._opened is not None:
            flush(*self._opened)

    def close(self) -> None:
        """Flush and end the thread, as also at exit; a later reading starts another thread."""
        if self._opened is not None:
            finish(*self._opened)

    @property
    def unsent(self) -> int:
        """Readings that are not on file yet."""
        return 0 if self._opened is None else self._pipe.unsent

    @property
    def dropped(self) -> int:
        """Number of readings dropped because writing failed for too long."""
        return 0 if self._opened is None else self._pipe.dropped

    @property
    def waited(self) -> float:
        """Seconds that training has waited for slower writing."""
        return 0.0 if self._opened is None else self._pipe.waited


def flush(pipe: Pipe, schedule: Schedule, ended: bool = False) -> None:
    """Bring a sink's readings to file, the newest with its layers, and what has changed since."""
    for item in (schedule.last_row(), schedule.last_facts(ended)) if pipe.mine else ():
        if item is not None:
            pipe.put(item)
    pipe.flush()


def finish(pipe: Pipe, schedule: Schedule) -> None:
    """Flush, say that the record has ended, and end the thread."""
    flush(pipe, schedule, ended=True)
    pipe.close()


class JSONLSink(FileSink):
    """A sink that keeps the record of a run in files that stay small, written in the background.

    All readings of total and groups are appended to ``path``, with as many digits as are significant. Layers
    are written to a file beside it (``run.layers.jsonl.gz`` for ``run.jsonl.gz``), at first for every
    reading; when there are ``max_rows`` rows, every second one is dropped and the spacing doubles, so that
    their number is bounded for a run of any length. Readings with an event (a spike of the loss or the
    gradient, a skipped step, a controller's action, a note by :meth:`mark`) keep their layers in up to
    ``max_events`` separate rows. :class:`thermoopt.record.SavedRun` and ``thermoopt inspect`` read both; the
    format is that of :mod:`thermoopt.record.form`.

    A thread encodes and writes every 32 readings or 2 seconds. A crash loses at most 64 readings or 5
    seconds; everything recorded before a ``state_dict()`` is on file. A resumed run appends to the same file;
    if steps repeat, the later line is valid.

    Args:
        path: the file; folders are created. With the ending ``.gz`` it is compressed, to a quarter.
        layers: whether to keep layers.
        max_rows: largest number of rows of layers on the schedule, at least 2.
        max_events: largest number of rows of layers of readings with an event, at least 2.

    Raises:
        OSError: if the path cannot be written, at construction.
        TypeError, ValueError: unless the limits are integers >= 2; for a record of a later version.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        layers: bool = True,
        max_rows: int = MAX_ROWS,
        max_events: int = MAX_EVENTS,
    ) -> None:
        check_limits("JSONLSink", max_rows=max_rows, max_events=max_events)
        self._arguments = {
            "path": Path(path),
            "layers": layers,
            "max_rows": max_rows,
            "max_events": max_events,
        }
        self._parts()

    def _open(self) -> tuple[Pipe, Schedule]:
        path, layers, *limits = self._arguments.values()
        _check_version(path)
        writer = RecordWriter(path, "JSONLSink", layers, *limits)
        return Pipe(writer, f"JSONLSink({str(path)!r})"), Schedule(writer.rows, *limits)


def _check_version(path: Path) -> None:
    """Raise ValueError if a file begins as a record of a version that is not known here."""
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        head = json.loads(next(iter(lines(path))).text)
    except (StopIteration, ValueError):
        return  # torn
    if isinstance(head, dict) and head.get("thermoopt", VERSION) != VERSION:
        raise ValueError(
            f"JSONLSink: path must be a new file or a record of version {VERSION} or older, got "
            f"{str(path)!r} of version {head['thermoopt']!r}: give the run another file, or update thermoopt"
        )


def unopened(cls: type[FileSink], arguments: Mapping[str, Any]) -> FileSink:
    """Make a sink that opens its files later: what pickle calls."""
    sink = cls.__new__(cls)
    sink._arguments = arguments
    return sink


def check_limits(owner: str, **limits: int) -> None:
    """Raise unless limits are integers from 2."""
    for name, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{owner}: {name} must be an integer >= 2, got {value!r}")
        if value < 2:
            raise ValueError(f"{owner}: {name} must be an integer >= 2, got {value}")
