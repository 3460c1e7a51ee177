"""Where readings go while a run is on: files, TensorBoard, any object with ``log(dict, step)``."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from thermoopt.history import reading_record
from thermoopt.meter import Quantities, Reading
from thermoopt.physics import QUANTITIES

__all__ = ["CSVSink", "JSONLSink", "LogSink", "Sink", "SinkQueue", "TensorBoardSink", "flat_scalars"]

MAX_UNSENT = 10_000
"""Readings kept for a sink that fails, as many as a history keeps; the oldest go first, and are counted."""


@runtime_checkable
class Sink(Protocol):
    """Takes readings one by one."""

    def write(self, reading: Reading) -> None:
        """Write one reading, or raise: it is then offered again with the next one."""


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
    """Appends one JSON object a reading (:func:`thermoopt.history.reading_record`).

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


class TensorBoardSink:
    """Writes scalars with a TensorBoard ``SummaryWriter``.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or anything with ``add_scalar``.

    Raises:
        TypeError: if the writer has no ``add_scalar``.
    """

    def __init__(self, writer: Any) -> None:
        if not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(
                f"TensorBoardSink: writer is {writer!r}; allowed is an object with "
                "add_scalar(tag, value, step)"
            )
        self._writer = writer

    def write(self, reading: Reading) -> None:
        """Write every finite scalar of total and groups."""
        for tag, value in flat_scalars(reading).items():
            self._writer.add_scalar(tag, value, reading.step)


class LogSink:
    """Hands ``log(dict, step)`` to a logger: W&B's run, trackio's, or an object of your own."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def write(self, reading: Reading) -> None:
        """Call ``log`` once with every finite scalar of total and groups."""
        self._logger.log(flat_scalars(reading), step=reading.step)


def flat_scalars(reading: Reading) -> dict[str, float]:
    """Finite quantities by flat name: ``thermo/total/sigma``, ``thermo/group0/r``, ``thermo/skipped/dry``."""
    scopes: dict[str, Quantities] = {"total": reading.total}
    scopes.update(zip(reading.group_names, reading.groups, strict=True))
    out = {
        f"thermo/{scope}/{name}": value
        for scope, quantity in scopes.items()
        for name, value in vars(quantity).items()
        if math.isfinite(value)
    }
    out.update({f"thermo/skipped/{cause}": n for cause, n in reading.skipped.items()})
    return out


class SinkQueue:
    """Feeds readings to sinks without ever stopping the training.

    A sink that raises is warned of once; its readings wait and are offered again, in order, with the
    next one. ``unsent`` tells what still waits, ``dropped`` what was given up when the wait got too long.

    Args:
        sinks: :class:`Sink` objects, objects with ``log(dict, step)``, or a TensorBoard ``SummaryWriter``.

    Raises:
        TypeError: if one is neither.
    """

    def __init__(self, sinks: Iterable[Any]) -> None:
        if not isinstance(sinks, Iterable):
            raise TypeError(f"sinks is {sinks!r}; allowed is a list of sinks")
        self._sinks = [_as_sink(sink) for sink in sinks]
        self._waiting: list[deque[Reading]] = [deque() for _ in self._sinks]
        self._warned = [False for _ in self._sinks]
        self.dropped = 0

    def __bool__(self) -> bool:
        return bool(self._sinks)

    @property
    def unsent(self) -> int:
        """Readings that wait for a sink that failed."""
        return sum(len(queue) for queue in self._waiting)

    def write(self, reading: Reading) -> None:
        """Offer one reading, after those that wait, to every sink."""
        for queue in self._waiting:
            queue.append(reading)
        self.flush()

    def flush(self) -> None:
        """Offer everything that waits once more."""
        for i, (sink, queue) in enumerate(zip(self._sinks, self._waiting, strict=True)):
            while queue:
                try:
                    sink.write(queue[0])
                except Exception as error:  # a user's sink may raise anything, and training goes on
                    if not self._warned[i]:
                        self._warned[i] = True
                        warnings.warn(
                            f"sink {type(sink).__name__} raised {error!r}; training goes on, its readings "
                            "are kept and offered again with the next one",
                            RuntimeWarning,
                            stacklevel=4,
                        )
                    break
                queue.popleft()
            while len(queue) > MAX_UNSENT:
                queue.popleft()
                self.dropped += 1


def _as_sink(sink: Any) -> Sink:
    if isinstance(sink, Sink):
        return sink
    if callable(getattr(sink, "add_scalar", None)):
        return TensorBoardSink(sink)
    if callable(getattr(sink, "log", None)):
        return LogSink(sink)
    raise TypeError(
        f"sinks holds {sink!r}; allowed are objects with write(reading) or log(dict, step), "
        "such as those of thermoopt.sinks"
    )


def _csv_line(values: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(values)
    return buffer.getvalue()
