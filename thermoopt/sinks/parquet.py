"""ParquetSink: the record of a run in columns (extra ``record``)."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from thermoopt.record import (
    CLOSED,
    META,
    VERSION,
    Reader,
    Trajectory,
    condensed,
    facts_of,
    journal_path,
    lasting,
    layer_path,
    layer_rows,
    layer_table,
    lines,
    merged_facts,
    note_line,
    pyarrow,
    standings_in,
    tables_of,
)
from thermoopt.sinks.append_file import AppendFile
from thermoopt.sinks.beside import Pipe
from thermoopt.sinks.jsonl import FileSink, RecordWriter, check_limits
from thermoopt.sinks.layer_rows import MAX_EVENTS, MAX_ROWS
from thermoopt.sinks.schedule import Item, Schedule

__all__ = ["ParquetSink"]

EVERY = 1024
"""Readings of a row group, at least: three columns' worth of a page of Parquet's own."""

SHARE = 8
"""A row group also has an eighth of all readings before it, since closing one copies the file: every byte is
then copied some ``SHARE`` times however long the run is."""

MAX_NOTES = 1000
"""Notes kept in the footer, the newest; and readings of each controlled rate, evenly over the run."""


class ParquetSink(FileSink):
    """A sink that keeps the record of a run in Parquet, written in the background (extra ``record``).

    ``run.parquet`` has one row per reading and scope (``total``, then each group) with the columns ``step``,
    ``scope``, ``loss`` and one per quantity; pandas and polars read it in one call. A row group is closed
    every ``every`` readings: a new file is written beside the old one, synced and renamed, so that the file
    is complete at any time. Later readings are in ``run.journal.jsonl.gz``. Layers are kept in
    ``run.journal.layers.jsonl.gz`` as by :class:`JSONLSink`, and, when the sink is closed or at exit, also in
    ``run.layers.parquet`` with the columns ``step``, ``layer``, ``why`` and one per quantity. Everything else
    is as for :class:`JSONLSink`, and ``thermoopt inspect`` reads all of it.

    Args:
        path: the file; folders are created.
        every: smallest number of readings in a row group; in long runs it is an eighth of all before it.
        layers, max_rows, max_events: as for :class:`JSONLSink`.

    Raises:
        ImportError: without pyarrow.
        OSError: if the path cannot be written, at construction.
        TypeError, ValueError: unless the limits are integers >= 2; for a file that is not a record.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        every: int = EVERY,
        layers: bool = True,
        max_rows: int = MAX_ROWS,
        max_events: int = MAX_EVENTS,
    ) -> None:
        pyarrow()
        check_limits("ParquetSink", every=every, max_rows=max_rows, max_events=max_events)
        self._arguments = {
            "path": Path(path),
            "every": every,
            "layers": layers,
            "max_rows": max_rows,
            "max_events": max_events,
        }
        self._parts()

    def _open(self) -> tuple[Pipe, Schedule]:
        path, every, layers, max_rows, max_events = self._arguments.values()
        writer = _Groups(path, layers, max_rows, max_events, every)
        return Pipe(writer, f"ParquetSink({str(path)!r})"), Schedule(writer.rows, max_rows, max_events)


class _Groups(RecordWriter):
    """Writes items to a journal, and the journal to row groups."""

    _closed: int
    _in_journal: int

    def __init__(self, path: Path, layers: bool, max_rows: int, max_events: int, every: int) -> None:
        self._path, self._every = path, every
        self._mine = True
        _check_file(path)
        super().__init__(journal_path(path), "ParquetSink", layers, max_rows, max_events)

    def _open(self) -> None:
        super()._open()
        self._closed = _readings_in(self._path)
        self._begin_journal()
        if self._file.size:  # of a run that was killed
            self._close_group()

    def write(self, items: list[Item]) -> None:
        """Write items to the journal, and close a row group where one is full."""
        super().write(items)
        self._in_journal += len(items)
        if self._in_journal >= max(self._every, self._closed // SHARE):
            try:
                self._close_group()
            except OSError as error:
                self._in_journal = 0  # the journal holds them; the next group takes them along
                self.news.append(f"no row group could be closed ({error}); the journal takes the readings")

    def end(self) -> None:
        """Close the last row group, and write the layers' table."""
        try:
            self._close_group()
            if self.rows is not None and layer_path(self._path).exists():
                table = layer_table(layer_rows(lines(layer_path(self._path)), []))
                if table is not None:
                    _write(self._path.with_name(f"{self._path.stem}.layers.parquet"), [table], {})
        except OSError as error:
            self.news.append(
                f"the last row group or the table of layers could not be written ({error}). Nothing is lost: "
                f"it is in {self._file.path.name} and beside it. thermoopt inspect reads it, and a "
                "ParquetSink opened on this path makes row groups of it"
            )

    def _held(self) -> bool:
        return self._closed > 0 or super()._held()

    def _begin_journal(self) -> None:
        self._journal = uuid.uuid4().hex
        self._head = None
        self._in_journal = 0

    def _text(self, items: list[Item]) -> tuple[str, Any]:
        begins = self._file.size == 0
        text, head = super()._text(items)
        return text + note_line("journal", items[-1].step, {"id": self._journal}) if begins else text, head

    def _close_group(self) -> None:
        """Make a row group of the journal, in a file that is then renamed; then the journal is emptied."""
        self._file.settle()
        path = self._file.path
        self._mine &= self._file.alone
        if not self._file.size or not self._mine:
            return
        reader = Reader(str(path))
        for line in lines(path):
            reader.take(line)
        readings, skipped, notes, _ = reader.finish()
        journal = next((n["id"] for n in notes if n.get("note") == "journal"), None)
        if readings.segments and journal != _meta(self._path).get(CLOSED, ""):
            self._append(readings, skipped, [n for n in notes if n.get("note") != "journal"], journal)
        empty = path.with_name(path.name + ".new")
        empty.touch()
        os.replace(empty, path)
        self._file = AppendFile(path, "ParquetSink")
        self._begin_journal()

    def _append(
        self, readings: Trajectory, skipped: dict[str, int], notes: list[dict[str, Any]], journal: str | None
    ) -> None:
        pa, pq = pyarrow()
        from pyarrow import compute

        begun = readings.segments[0].steps[0]
        tables, meta = [], _meta(self._path)
        if self._path.exists():
            file = pq.ParquetFile(self._path)
            for i in range(file.num_row_groups):
                table = file.read_row_group(i)
                if table.num_rows and table["step"][-1].as_py() >= begun:  # a checkpoint was loaded
                    table = table.filter(compute.less(table["step"], begun))
                tables.append(table)
        # groups of a short run grow into one of useful size
        new = tables_of(readings)
        if tables and tables[-1].num_rows + new.num_rows <= 2 * self._every:
            new = pa.concat_tables([tables.pop(), new]).unify_dictionaries()
        tables.append(new)
        facts, old_notes = facts_of(meta.get("notes", []))
        more, notes = facts_of(notes)
        facts = merged_facts(lasting(facts), more)
        old_notes = [n for n in old_notes if n.get("step", 0) < begun]
        rates = condensed([*old_notes, *notes], MAX_NOTES)
        old_notes, notes = standings_in(old_notes)[1], standings_in(notes)[1]
        meta = {
            "version": 2,
            CLOSED: journal,
            "skipped": {**meta.get("skipped", {}), **skipped},
            "notes": [*([facts] if facts else []), *rates, *[*old_notes, *notes][-MAX_NOTES:]],
        }
        _write(self._path, [t for t in tables if t.num_rows], meta)
        self._closed += readings.count


def _write(path: Path, tables: list[Any], meta: dict[str, Any]) -> None:
    """Write tables as row groups beside a file, and put the new one in its place."""
    pa, pq = pyarrow()
    new = path.with_name(path.name + ".new")
    schema = tables[0].schema.with_metadata({META: json.dumps(meta).encode()})
    floats = [f.name for f in schema if pa.types.is_floating(f.type)]
    try:
        with pq.ParquetWriter(
            new,
            schema,
            compression="zstd",
            use_dictionary=[f.name for f in schema if f.name not in floats],
            use_byte_stream_split=floats,
        ) as writer:
            for table in tables:
                writer.write_table(table.cast(schema), row_group_size=max(1, table.num_rows))
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _meta(path: Path) -> dict[str, Any]:
    """What the footer says."""
    if not path.exists():
        return {}
    _, pq = pyarrow()
    return dict(json.loads((pq.read_metadata(path).metadata or {}).get(META, b"{}")))


def _readings_in(path: Path) -> int:
    """How many rows a file has."""
    return int(pyarrow()[1].read_metadata(path).num_rows) if path.exists() else 0


def _check_file(path: Path) -> None:
    """Raise unless a file is a record, or not there yet.

    Raises:
        ValueError: naming what is there.
    """
    if not path.exists():
        return
    pa, pq = pyarrow()
    must = f"ParquetSink: path must be a new file or a record, got {str(path)!r}"
    try:
        found = json.loads((pq.read_metadata(path).metadata or {}).get(META, b"null"))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{must} ({error})") from error
    if found is None:
        raise ValueError(f"{must}, which has other columns")
    if found.get("version") != VERSION:
        raise ValueError(f"{must} of version {found.get('version')!r}; this thermoopt writes {VERSION}")
