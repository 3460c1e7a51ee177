"""CSVSink: one line per reading and scope, written in the background."""

from __future__ import annotations

import csv
import io
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thermoopt.physics import QUANTITIES
from thermoopt.record import scope_values
from thermoopt.sinks.append_file import AppendFile
from thermoopt.sinks.beside import Pipe
from thermoopt.sinks.jsonl import FileSink, finish, reopened
from thermoopt.sinks.schedule import Item, Schedule

__all__ = ["CSVSink"]


class CSVSink(FileSink):
    """Appends one line per reading and scope (total, then each group): step, scope, quantities.

    Values have as many digits as in :class:`JSONLSink`; undefined and infinite values are empty. A thread
    writes every 32 readings or 2 seconds.

    Args:
        path: the file; folders are created; the header is written once, to an empty file. With the ending
            ``.gz`` it is compressed.

    Raises:
        OSError: if the path cannot be written, at construction.
    """

    keeps_facts = False

    def __init__(self, path: str | Path) -> None:
        self._arguments: dict[str, Any] = {"path": Path(path)}
        self._schedule = Schedule(None, 2, 2)
        self._pipe = Pipe(_Table(Path(path)), f"CSVSink({str(path)!r})")
        self._finish = weakref.finalize(self, finish, self._pipe, self._schedule)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy by opening the file again: what waits to be written stays with the original."""
        return reopened, (type(self), self._arguments)


class _Table:
    """Writes items as lines of CSV."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.news: list[str] = []
        self.restart()

    def restart(self) -> None:
        """Open the file."""
        self._file = AppendFile(self._path, "CSVSink")
        if self._file.size == 0:
            self._file.append(_line(["step", "scope", *QUANTITIES]))

    def write(self, items: list[Item]) -> None:
        """Append the items' lines."""
        lines = []
        for item in (item for item in items if not item.no_reading):
            (texts,) = scope_values([item.group_terms])
            lines += [
                _line([item.step, scope, *row])
                for scope, row in zip(("total", *item.groups), texts, strict=True)
            ]
        self._file.append("".join(lines))

    def settle(self) -> None:
        """Close the gzip member."""
        self._file.settle()

    def end(self) -> None:
        """Nothing more comes, for now."""


def _line(values: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()
