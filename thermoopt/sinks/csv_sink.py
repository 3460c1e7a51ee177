"""CSVSink: one line per reading and scope, written in the background."""

from __future__ import annotations

import csv
import gzip
import io
import math
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from thermoopt.physics import QUANTITIES
from thermoopt.record import lines, scope_values
from thermoopt.sinks.append_file import AppendFile
from thermoopt.sinks.beside import Pipe
from thermoopt.sinks.jsonl import FileSink
from thermoopt.sinks.schedule import Item, Schedule

__all__ = ["CSVSink"]


class CSVSink(FileSink):
    """A sink that appends a CSV line per reading and scope: step, scope, loss, quantities.

    Scopes are the total and each group. Values have as many digits as in :class:`JSONLSink`; undefined and
    infinite values are empty. A thread writes every 32 readings or 2 seconds. If a run resumes from a
    checkpoint in the same file, rows of repeated steps are replaced, so that each step is in the file once.

    Args:
        path: the file; folders are created; the header is written once, to an empty file. With the ending
            ``.gz`` it is compressed.

    Raises:
        OSError: if the path cannot be written, at construction.
        ValueError: for a file with other columns.
    """

    keeps_facts = False

    def __init__(self, path: str | Path) -> None:
        self._arguments = {"path": Path(path)}
        self._parts()

    def _open(self) -> tuple[Pipe, Schedule]:
        path = self._arguments["path"]
        return Pipe(_Table(path), f"CSVSink({str(path)!r})"), Schedule(None, 2, 2)


class _Table:
    """Writes items as lines of CSV."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.news: list[str] = []
        self.restart()

    def restart(self) -> None:
        """Open the file."""
        self._last: int | None = None
        _check_file(self._path)
        self._file = AppendFile(self._path, "CSVSink")
        if self._file.size == 0:
            self._file.append(_HEADER)
            self._last = -1

    def write(self, items: list[Item]) -> None:
        """Append the items' lines, in place of those of the same and later steps."""
        kept: list[tuple[int, str]] = []
        for item in (item for item in items if not item.no_reading):
            while kept and kept[-1][0] >= item.step:  # a checkpoint was loaded
                kept.pop()
            (texts,) = scope_values([item.group_terms])
            rows = zip(("total", *item.groups), texts, strict=True)
            loss = "" if item.loss is None or not math.isfinite(item.loss) else f"{item.loss:.7g}"
            table = [_line([item.step, scope, loss, *row]) for scope, row in rows]
            kept.append((item.step, "".join(table)))
        if not kept:
            return
        if self._last is None or kept[0][0] <= self._last:
            self._forget(kept[0][0])
        self._file.append("".join(text for _, text in kept))
        self._last = kept[-1][0]

    def _forget(self, step: int) -> None:
        """Drop rows from a step on, unless someone else writes to the file."""
        was_alone = self._file.alone
        self._file.look()
        if not self._file.alone:
            if was_alone:
                self.news.append(
                    f"another process or sink writes to {self._path}: steps will occur twice in it"
                )
            return
        self._file.settle()
        if self._path.suffix == ".gz":
            _rewrite(self._path, step)
        else:
            os.truncate(self._path, _end_before(self._path, step))
        self._file = AppendFile(self._path, "CSVSink")

    def settle(self) -> None:
        """Close the gzip member."""
        self._file.settle()

    def end(self) -> None:
        """Nothing more comes, for now."""


def _check_file(path: Path) -> None:
    """Raise unless a file begins as a sink writes it, or is not there yet; drop a line that has no end.

    Raises:
        ValueError: naming what is there.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    found = lines(path)
    head = next(found).text.decode(errors="replace").strip()
    if head != _HEADER.strip():
        if _HEADER.startswith(head) and next(found, None) is None:  # torn
            os.truncate(path, 0)
            return
        raise ValueError(
            f"CSVSink: path must be a new file or one with the columns step, scope, loss, {QUANTITIES[0]}, "
            f"..., {QUANTITIES[-1]}, got {str(path)!r}, which begins with {head[:60]!r}"
        )
    if path.suffix != ".gz":
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            whole = data.rfind(b"\n") + 1
        os.truncate(path, whole)


def _end_before(path: Path, step: int) -> int:
    """Return where the rows of earlier steps end."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = len(data)
        while (start := data.rfind(b"\n", 0, end - 1) + 1) > 0:
            if _is_before(data[start : start + 24], step):
                break
            end = start
        return end


def _rewrite(path: Path, step: int) -> None:
    """Rewrite a compressed file with the rows of earlier steps only, as a new file that replaces it."""
    new = path.with_name(path.name + ".new")
    try:
        with gzip.open(path, "rb") as old, new.open("wb") as raw:
            with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
                file.write(old.readline())
                file.writelines(line for line in old if _is_before(line, step))
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _is_before(line: bytes, step: int) -> bool:
    """Whether a line is a row of an earlier step; a torn one is not."""
    head, comma, _ = line.partition(b",")
    return bool(comma) and head.isdigit() and int(head) < step


def _line(values: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()


_HEADER = _line(["step", "scope", "loss", *QUANTITIES])
