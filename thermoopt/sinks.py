"""Where readings go while a run is on: files, and the queue that feeds them and all other sinks."""

from __future__ import annotations

import csv
import io
import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from thermoopt.history import reading_record
from thermoopt.logger_sinks import (
    LogSink,
    MLflowSink,
    TensorBoardSink,
    WandbSink,
    flat_scalars,
    has_method,
)
from thermoopt.meter import Reading
from thermoopt.physics import QUANTITIES

__all__ = [
    "CSVSink",
    "JSONLSink",
    "LogSink",
    "MLflowSink",
    "Sink",
    "SinkQueue",
    "TensorBoardSink",
    "WandbSink",
    "flat_scalars",
]

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


class SinkQueue:
    """Feeds readings to sinks without ever stopping the training.

    A sink that raises is warned of once; its readings wait and are offered again, in order, with the
    next one. ``unsent`` tells what still waits, ``dropped`` what was given up when the wait got too long.

    Args:
        sinks: :class:`Sink` objects, or what one is made of: a TensorBoard ``SummaryWriter``, a W&B run or
            the module ``wandb``, the modules ``mlflow`` and ``trackio``, any object with ``log(dict, step)``
            or ``log_metrics(dict, step)``.

    Raises:
        TypeError: if one is none of these.
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
    if isinstance(sink, Sink) and not isinstance(sink, type):
        return sink
    for method, kind in _KINDS:
        if has_method(sink, method) and not isinstance(sink, type):
            return kind(sink)
    raise TypeError(
        f"sinks holds {sink!r}; allowed are objects with write(reading) or log(dict, step), such as those of "
        f"thermoopt.sinks, a SummaryWriter, a W&B run, mlflow and trackio{_hint(sink)}"
    )


_KINDS: tuple[tuple[str, Callable[[Any], Sink]], ...] = (
    ("add_scalar", TensorBoardSink),
    ("define_metric", WandbSink),
    ("log", LogSink),
    ("log_metrics", MLflowSink),
)
"""What an object is taken for by a method it has, in this order: W&B has ``log``, too."""


def _hint(sink: Any) -> str:
    """What was probably meant."""
    if sink is None:
        return ". wandb.run is None before wandb.init(), and on ranks that have no run: leave it out there"
    if isinstance(sink, (str, Path)):
        return f". For a file: JSONLSink({str(sink)!r})"
    if isinstance(sink, type):
        return ". This is a class: give an object made of it"
    if has_method(sink, "log_batch") or hasattr(getattr(sink, "info", None), "run_id"):
        return ". For MLflow give the module mlflow, or MLflowSink(mlflow, run_id=...) of thermoopt.sinks"
    return ""


def _csv_line(values: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(values)
    return buffer.getvalue()
