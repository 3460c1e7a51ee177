"""Where readings go while a run is on: files, and the queue that feeds them and all other sinks."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

from thermoopt.account import reading_record
from thermoopt.account.reading import Reading
from thermoopt.physics import QUANTITIES

__all__ = ["CSVSink", "JSONLSink"]


class _LineFile:
    """Append-only text file: one system call a line, so that a crash tears at most the line under way."""

    def __init__(self, path: str | Path, owner: str) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise OSError(
                f"{owner}: path is {str(path)!r}; allowed is a file that can be written ({error.strerror})"
            ) from error
        self.size = os.fstat(self._fd).st_size
        self._torn = self.size > 0 and os.pread(self._fd, 1, self.size - 1) != b"\n"

    def write(self, line: str) -> None:
        # a line torn by a crash or a full disk ends before the next one begins
        data = (("\n" if self._torn else "") + line + "\n").encode()
        written = os.write(self._fd, data)
        if written:
            self._torn = data[written - 1 : written] != b"\n"
        if written != len(data):
            raise OSError(f"{self.path}: {written} of {len(data)} bytes written")

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)


class JSONLSink:
    """Appends one JSON object a reading (:func:`thermoopt.account.reading_record`).

    A resumed run appends to the same file; where steps repeat, the later line is the valid one.

    Args:
        path: the file; folders are made.
        layers: whether lines carry every layer.

    Raises:
        OSError: if the path cannot be written, at construction.
    """

    def __init__(self, path: str | Path, *, layers: bool = True) -> None:
        self._file = _LineFile(path, "JSONLSink")
        self._layers = layers

    def write(self, reading: Reading) -> None:
        """Append one line."""
        self._file.write(json.dumps(reading_record(reading, self._layers), allow_nan=False))


class CSVSink:
    """Appends one line a reading and scope (total, then each group): step, scope, quantities.

    Args:
        path: the file; folders are made; the header is written once, into an empty file.

    Raises:
        OSError: if the path cannot be written, at construction.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = _LineFile(path, "CSVSink")
        if self._file.size == 0:
            self._file.write(_csv_line(["step", "scope", *QUANTITIES]))

    def write(self, reading: Reading) -> None:
        """Append one line for the total and one for each group."""
        record = reading_record(reading, layers=False)
        scopes = {"total": record["total"], **record["groups"]}
        lines = [
            _csv_line([record["step"], scope, *(values[name] for name in QUANTITIES)])
            for scope, values in scopes.items()
        ]
        self._file.write("\n".join(lines))


def _csv_line(values: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(values)
    return buffer.getvalue()
