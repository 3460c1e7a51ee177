"""The queue that passes readings to files and all other sinks during a run."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from thermoopt.account import Losses
from thermoopt.account.reading import Reading
from thermoopt.physics import Standing
from thermoopt.sinks.jsonl import FileSink
from thermoopt.sinks.schedule import Facts
from thermoopt.sinks.trackers import (
    LogSink,
    MLflowSink,
    TensorBoardSink,
    WandbSink,
    has_method,
    is_function,
    is_wandb,
)

__all__ = ["MAX_UNSENT", "Sink", "SinkQueue"]

MAX_UNSENT = 10_000
"""Readings kept for a failing sink, as many as in a history; the oldest are dropped first, and counted."""


@runtime_checkable
class Sink(Protocol):
    """Interface of a sink, which receives readings one by one."""

    def write(self, reading: Reading) -> None:
        """Write one reading, or raise: the reading is then offered again with the next one."""


class SinkQueue:
    """A queue that passes readings to sinks without ever stopping the training.

    Sinks that write files queue a reading and write it in the background; all others receive it in the
    training thread, in which trackers look up their active run. If a sink raises, there is one warning; its
    readings wait and are offered again, in order, with the next one. ``unsent`` counts the readings that
    wait, ``dropped`` those given up after too long.

    Args:
        sinks: :class:`Sink` objects, or objects that can be wrapped as one: a TensorBoard ``SummaryWriter``,
            a W&B run or the module ``wandb``, the modules ``mlflow``, ``trackio`` and ``swanlab``, any object
            with ``log(dict, step)`` or ``log_metrics(dict, step)``, any function of ``(dict, step=)``.

    Raises:
        TypeError: for any other object.
    """

    def __init__(self, sinks: Iterable[Any]) -> None:
        if not isinstance(sinks, Iterable):
            raise TypeError(f"sinks must be a list of sinks, got {sinks!r}")
        self._sinks = [_as_sink(sink) for sink in sinks]
        self._waiting: list[deque[Reading]] = [deque() for _ in self._sinks]
        self._warned = [False for _ in self._sinks]
        self._dropped = 0
        self.losses = Losses()
        self._told = -1

    def __bool__(self) -> bool:
        return bool(self._sinks)

    @property
    def unsent(self) -> int:
        """Number of readings that wait for a failed sink or to be written to a file."""
        return sum(len(queue) for queue in self._waiting) + sum(sink.unsent for sink in self._files)

    @property
    def dropped(self) -> int:
        """Number of readings dropped, oldest first, because a sink failed for too long."""
        return self._dropped + sum(sink.dropped for sink in self._files)

    @property
    def _files(self) -> list[FileSink]:
        return [sink for sink in self._sinks if isinstance(sink, FileSink)]

    @property
    def keeps_facts(self) -> bool:
        """Whether one of the sinks is a record, which asks for facts of the run (:meth:`introduce`)."""
        return any(sink.keeps_facts for sink in self._files)

    def mark(self, kind: str, /, **fields: Any) -> None:
        """Add a note to the records (:meth:`FileSink.mark`)."""
        for sink in self._files:
            sink.mark(kind, **fields)

    def stand(self, step: int, standings: Collection[Standing], actions: Sequence[Any]) -> None:
        """Add to the records where a controller's rates stand after a reading, and its new actions.

        Args:
            step: of the reading.
            standings: of each rate.
            actions: all so far, oldest first.
        """
        if self._told > step + 1:  # a checkpoint was loaded
            self._told = step
        new = [action for action in actions if action.step > self._told] if self._files else []
        self._told = max((action.step for action in new), default=self._told)
        for sink in self._files:
            for action in new:
                sink.mark("action", **action.to_dict())
            sink.stand(standings)

    def introduce(self, run: Any, facts: Facts) -> None:
        """Tell records whose readings come (:meth:`FileSink.introduce`)."""
        for sink in self._files:
            sink.introduce(run, facts)

    def report_loss(self, step: int, loss: object) -> None:
        """Keep the loss of a step for readings that come without one.

        Raises:
            TypeError, ValueError: as :meth:`thermoopt.account.Losses.report`.
        """
        if self._sinks:
            self.losses.report(step, loss)

    def rewind(self, step: int) -> None:
        """Forget losses after a step: a checkpoint was loaded."""
        self.losses.rewind(step, None, self.losses.bad)

    def write(self, reading: Reading) -> None:
        """Offer one reading to every sink, after those that wait."""
        if reading.loss is None and self.losses.last is not None:
            reading = replace(reading, loss=self.losses.last)
        for sink in self._files:
            sink.offered_by(self)
        for queue in self._waiting:
            queue.append(reading)
        self._offer()

    def flush(self) -> None:
        """Offer all waiting readings once more, and wait until they are on file."""
        self._offer()
        for sink in self._files:
            sink.flush()

    def _offer(self) -> None:
        for i, (sink, queue) in enumerate(zip(self._sinks, self._waiting, strict=True)):
            while queue:
                try:
                    sink.write(queue[0])
                except Exception as error:  # a user's sink may raise anything, and training goes on
                    if not self._warned[i]:
                        self._warned[i] = True
                        warnings.warn(
                            f"sink {type(sink).__name__} raised {error!r}; training goes on, readings for it "
                            "are kept and offered again with the next one",
                            RuntimeWarning,
                            stacklevel=4,
                        )
                    break
                queue.popleft()
            while len(queue) > MAX_UNSENT:
                queue.popleft()
                self._dropped += 1


def _as_sink(sink: Any) -> Sink:
    if not isinstance(sink, type):
        owner = getattr(sink, "__self__", None)
        if is_function(sink) and _kind(owner) is not None:  # wandb.log is a method of the run
            sink = owner
        if isinstance(sink, Sink):
            return sink
        kind = _kind(sink) or (LogSink if is_function(sink) else None)
        if kind is not None:
            return kind(sink)
    raise TypeError(
        "sinks must be objects with write(reading) or log(dict, step), such as those of thermoopt.sinks, a "
        "SummaryWriter, a W&B run, mlflow or trackio, or functions f(dict, step=) that hand the values to "
        f"another tracker, got {sink!r}{_hint(sink)}"
    )


def _kind(tracker: Any) -> Callable[[Any], Sink] | None:
    """The sink for a tracker, told by a method that it has; W&B has ``log``, too."""
    if has_method(tracker, "add_scalar"):
        return TensorBoardSink
    if is_wandb(tracker):
        return WandbSink
    if has_method(tracker, "log"):
        return LogSink
    return MLflowSink if has_method(tracker, "log_metrics") else None


def _hint(sink: Any) -> str:
    """What was probably meant."""
    if sink is None:
        return ". wandb.run is None before wandb.init(), and on ranks that have no run: leave it out there"
    if isinstance(sink, (str, Path)):
        return f". For a file: JSONLSink({str(sink)!r})"
    if isinstance(sink, type):
        return ". This is a class: pass an instance of it"
    if has_method(sink, "log_batch") or hasattr(getattr(sink, "info", None), "run_id"):
        return ". For MLflow pass the module mlflow, or MLflowSink(mlflow, run_id=...) of thermoopt.sinks"
    return ""
