"""Reports of an observed run: epochs, a summary, files, a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from thermoopt.account import History, Losses, as_loss, epoch_record, mean, run_summary
from thermoopt.account.reading import Reading
from thermoopt.plots import LossCurve, check_display, plot_dashboard, show_figure
from thermoopt.traits import run_length

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from thermoopt.observer.source import Source

__all__ = ["RunReports"]


class RunReports(ABC):
    """Epochs, summary, files and picture of the run that a subclass measures."""

    _source: Source

    def __init__(self) -> None:
        self._epochs: list[dict[str, Any]] = []

    @property
    @abstractmethod
    def optimizer(self) -> Optimizer:
        """The optimizer observed."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Optimizer steps taken, as :attr:`Reading.step` counts them."""

    @property
    @abstractmethod
    def measure_every(self) -> int:
        """One step in this many is measured."""

    @property
    @abstractmethod
    def reading(self) -> Reading | None:
        """The last completed reading, or None before the first."""

    @property
    @abstractmethod
    def history(self) -> History:
        """The bounded record of readings."""

    @property
    @abstractmethod
    def losses(self) -> Losses:
        """The losses reported."""

    @property
    @abstractmethod
    def skipped(self) -> dict[str, int]:
        """Measured steps that moved nothing, by cause."""

    @property
    def sparse(self) -> frozenset[str]:
        """Names of the layers that had sparse gradients, which are not measured."""
        return frozenset(self._source.sparse)

    @property
    def length(self) -> int | None:
        """Step at which a controller or a ThermoScheduler has cooled the lr; None if none does."""
        return run_length(self.optimizer)

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The results of :meth:`epoch_end` so far."""
        return [dict(epoch) for epoch in self._epochs]

    def epoch_end(
        self, val_loss: float | Tensor | None = None, val_acc: float | Tensor | None = None
    ) -> dict[str, Any]:
        """Close an epoch: the steps since the last call.

        Args:
            val_loss, val_acc: values to keep with it: numbers, or tensors with one element, which are waited
                for.

        Returns:
            ``epoch`` (from 1), ``step``, means of ``sigma``, ``r``, ``D`` and ``rho_momentum`` over the
            epoch's readings and of ``loss`` over the losses reported in it (NaN if there is none),
            ``val_loss`` and ``val_acc``.

        Raises:
            TypeError, ValueError: for values that are not numbers.
        """
        given = {
            name: None if value is None else float(as_loss(value, name))
            for name, value in (("val_loss", val_loss), ("val_acc", val_acc))
        }
        first, last = self._epochs[-1]["step"] + 1 if self._epochs else 0, self.steps
        means = epoch_record(self.history, first, last)
        losses = self.losses
        loss = mean(losses.values[(losses.steps >= first) & (losses.steps <= last)])
        epoch = {"epoch": len(self._epochs) + 1, "step": last, **means, "loss": loss, **given}
        self._epochs.append(epoch)
        return dict(epoch)

    def summary(self) -> dict[str, Any]:
        """Return a summary of the run as one flat dict.

        It has ``n_steps``, ``n_readings`` and ``optimizer``; from the first reading on, also the entries of
        :func:`thermoopt.account.run_summary` and ``skipped``, the number of measured steps that entered no
        average, with a count for each cause that occurred (``skipped_nonfinite`` and so on).
        """
        causes = {cause: n for cause, n in self.skipped.items() if n}
        out: dict[str, Any] = {
            "n_steps": self.steps,
            "n_readings": 0,
            "optimizer": type(self.optimizer).__name__,
        }
        reading = self.reading
        if reading is not None:
            out.update(run_summary(self.history, reading, self.losses.values), skipped=sum(causes.values()))
        return {**out, **{f"skipped_{cause}": n for cause, n in causes.items()}}

    def export_csv(self, path: str | Path) -> None:
        """Write the history as CSV (:meth:`thermoopt.History.export_csv`).

        Raises:
            ValueError: if it is empty.
        """
        self._filled_history().export_csv(path)

    def export_jsonl(self, path: str | Path) -> None:
        """Write the history as JSONL (:meth:`thermoopt.History.export_jsonl`), for ``thermoopt inspect``.

        Raises:
            ValueError: if it is empty.
        """
        self._filled_history().export_jsonl(path)

    def plot_dashboard(self, save_path: str | Path | None = None, show: bool = False) -> Figure:
        """Draw the run on one page (:func:`thermoopt.plots.plot_dashboard`).

        Args:
            save_path: file to write; its suffix chooses the format.
            show: also open a window.

        Raises:
            ValueError: for a history of fewer than 2 readings.
            ImportError, RuntimeError: if matplotlib is missing, or cannot open a window.
        """
        if show:
            check_display()
        history = self._filled_history()
        valid = [(e["step"], e["val_loss"]) for e in self._epochs if e["val_loss"] is not None]
        curve = LossCurve(
            self.losses.steps.tolist(),
            self.losses.values.tolist(),
            [step for step, _ in valid],
            [loss for _, loss in valid],
            unit="",
        )
        figure = plot_dashboard(history, curve, path=save_path)
        if show:
            show_figure(figure)
        return figure

    def _filled_history(self) -> History:
        history = self.history
        if len(history) == 0:
            causes = [f"{cause}: {n}" for cause, n in self.skipped.items() if n]
            raise ValueError(
                f"the history is empty after {self.steps} steps of the optimizer, of which one in "
                f"{self.measure_every} is measured (skipped: {', '.join(causes) or 'none'}); train first"
            )
        return history

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "an Observer cannot be copied or pickled: it measures through hooks on its own optimizer. Create "
            "a new one for the copied model and optimizer, and load its state_dict()"
        )
