"""ThermoCallback for Lightning: measures the optimizers of a run and logs the readings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thermoopt.adamw import ThermoAdamW, check_count
from thermoopt.integrations.artifacts import write_artifacts
from thermoopt.integrations.scalars import SCALARS, run_scalars
from thermoopt.integrations.unwrapping import unwrap
from thermoopt.observer import LOG_EVERY, Observer

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError as error:
            raise ImportError("ThermoCallback needs Lightning: pip install 'thermoopt[lightning]'") from error

__all__ = ["ThermoCallback"]

BAR = (*SCALARS, "equilibrium_fraction")
"""Names that the progress bar can show."""


@dataclass
class _Watch:
    """An observed optimizer: the prefix of its values, its folder, and the last steps taken and logged."""

    observer: Observer
    prefix: str
    folder: Path
    stepped: int
    logged: int
    names: set[str] = field(default_factory=set)


class ThermoCallback(Callback):
    r"""A callback that measures every optimizer of a run with an :class:`~thermoopt.Observer`.

    It changes nothing. Observers are attached when training starts, after a checkpoint has been loaded. A
    ThermoAdamW measures itself; all other optimizers are measured in step hooks. Lightning runs the backward
    pass and its clipping inside ``optimizer.step(closure)``; gradients are read after that, so clipped.

    *Logging* uses ``log_dict``, so values reach all loggers (as often as ``Trainer(log_every_n_steps=...)``
    permits) and ``trainer.callback_metrics``. Logged are the values that
    :func:`thermoopt.integrations.scalars.run_scalars` selects, ``thermo/sigma``, ``thermo/r`` and so on; one
    that has become undefined is NaN. With several optimizers their names are inserted:
    ``thermo/optimizer0/r``.

    *Loss.* With one optimizer the loss of ``training_step`` is passed to its observer: the mean over the
    batches since the last step, without Lightning's division by ``accumulate_grad_batches``.

    *Checkpoints* contain the observers' averages and counters. With a checkpoint that lacks them (written
    without the callback, or with other optimizers, which raises a warning) averages start over.

    *At the end of training*, and when an exception ends it, rank zero writes picture, tables and diagnosis
    (:func:`thermoopt.integrations.artifacts.write_artifacts`) to the folder ``thermo`` in
    ``trainer.log_dir``, with one subfolder per optimizer if there are several. They cover the readings since
    the last start: history is not part of a checkpoint. ``fast_dev_run`` writes nothing.

    Optimizers that are exchanged during a run are measured from scratch from the next batch on, with a
    warning.

    Args:
        log_every: number of optimizer steps between logged readings, at least 1; for optimizers other than
            ThermoAdamW also between measured steps.
        track: as for :class:`~thermoopt.Observer`.
        groups, layers: whether to log parameter groups and layers too.
        prog_bar: values of the total to show on the progress bar, from :data:`BAR`.
        names: names of the optimizers; None uses ``optimizer0`` and so on, and no name for a single one.
        folder: folder to write to at the end; None uses ``thermo`` in the trainer's ``log_dir``, which is its
            ``default_root_dir`` without a logger.

    Attributes:
        observers: one per optimizer, in the order of ``trainer.optimizers``. They remain readable after
            training.
        written: the files written at the end.

    Raises:
        ImportError: if Lightning is missing, when this module is imported.
        TypeError, ValueError: for invalid arguments, and, when training starts, for a second ThermoCallback,
            a number of ``names`` other than that of the optimizers, or a folder that is not local.
    """

    def __init__(
        self,
        *,
        log_every: int = LOG_EVERY,
        track: Collection[str] = (),
        groups: bool = False,
        layers: bool = False,
        prog_bar: Collection[str] = (),
        names: Sequence[str] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        _check_arguments(log_every, prog_bar, names)
        self.observers: tuple[Observer, ...] = ()
        self.written: list[Path] = []
        self._log_every = log_every
        self._track = track
        self._groups, self._layers = groups, layers
        self._bar = frozenset(prog_bar)
        self._names = names
        self._given_folder = folder
        self._folder = Path()
        self._watches: list[_Watch] = []
        self._losses: list[Tensor] = []
        self._saved: Mapping[str, Any] = {}

    # ---------------------------------------------------------------- the run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run before a checkpoint is loaded."""
        if stage != "fit":
            return
        callbacks = trainer.callbacks
        count = sum(isinstance(callback, ThermoCallback) for callback in callbacks)
        if count > 1:
            raise ValueError(f"the trainer's callbacks must hold one ThermoCallback only, got {count}")
        self.observers, self._watches, self._saved = (), [], {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the observers; by now the optimizers have been restored from a checkpoint."""
        self._folder = self._where(trainer)
        self._attach(trainer, pl_module)
        self._restore()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Follow optimizers that were exchanged."""
        now = _optimizers(trainer)
        if len(now) == len(self.observers) and all(
            optimizer is observer.optimizer for optimizer, observer in zip(now, self.observers, strict=True)
        ):
            return
        warnings.warn(
            "the optimizers of the trainer were exchanged after training had started: ThermoCallback "
            "measures the new ones from scratch, and does not write its readings of the old ones",
            RuntimeWarning,
            stacklevel=2,
        )
        self._close()
        self._attach(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report the loss, and log the newest reading when it is due."""
        self._take_loss(trainer, pl_module, outputs)
        for watch in self._watches:
            observer = watch.observer
            if observer.steps == watch.stepped:
                continue  # gradients are being accumulated, or this was another optimizer's turn
            watch.stepped = observer.steps
            reading = observer.step(torch.stack(self._losses).mean() if self._losses else None)
            self._losses = []
            if reading is None or observer.steps // self._log_every == watch.logged // self._log_every:
                continue
            watch.logged = observer.steps
            values = run_scalars(reading, groups=self._groups, layers=self._layers, prefix=watch.prefix)
            watch.names |= values.keys()
            # Lightning repeats the last value of a name that is not logged again
            values = {**dict.fromkeys(watch.names, math.nan), **values}
            bar = {f"{watch.prefix}{name}" for name in self._bar}
            pl_module.log_dict({k: v for k, v in values.items() if k not in bar})
            pl_module.log_dict({k: v for k, v in values.items() if k in bar}, prog_bar=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files of the run, and remove the hooks from the optimizers."""
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the files of a run that failed or was interrupted."""
        self._finish(trainer, ended=False)

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return the observers' states: plain data."""
        if not self.observers:
            return dict(self._saved)
        return {"observers": [observer.state_dict() for observer in self.observers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts: Lightning has no optimizers yet."""
        self._saved = state_dict

    def _restore(self) -> None:
        states = self._saved.get("observers", [])
        self._saved = {}
        if not states:
            return
        fits = len(states) == len(self.observers) and all(
            isinstance(observer.optimizer, ThermoAdamW) or "groups" in state
            for observer, state in zip(self.observers, states, strict=True)
        )
        if not fits:
            warnings.warn(
                f"the checkpoint's ThermoCallback measured other optimizers ({len(states)}) than the trainer "
                f"has now ({len(self.observers)}): averages start over",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        for watch, state in zip(self._watches, states, strict=True):
            watch.observer.load_state_dict(state)
            watch.stepped = watch.logged = watch.observer.steps

    # ---------------------------------------------------------------- parts

    def _where(self, trainer: Trainer) -> Path:
        """Return the folder for the files; called on all ranks, because ``log_dir`` is broadcast."""
        log_dir = trainer.log_dir or trainer.default_root_dir
        folder = Path(log_dir, "thermo") if self._given_folder is None else Path(self._given_folder)
        if "://" in str(self._given_folder or log_dir):
            raise ValueError(
                f"folder must be a local one, got {str(self._given_folder or log_dir)!r}: pass "
                "ThermoCallback(folder=...)"
            )
        return folder

    def _attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        optimizers = _optimizers(trainer)
        names = self._names
        if names is None:
            names = [""] if len(optimizers) == 1 else [f"optimizer{i}" for i in range(len(optimizers))]
        if len(names) != len(optimizers):
            raise ValueError(
                f"names must hold one name for each of the trainer's {len(optimizers)} optimizers, "
                f"got {names!r}"
            )
        own, self._watches, self._losses = set(pl_module.parameters()), [], []
        for name, optimizer in zip(names, optimizers, strict=True):
            held = {p for group in optimizer.param_groups for p in group["params"]}
            model = None if own.isdisjoint(held) else pl_module
            observer = Observer(model, optimizer, self._log_every, track=self._track)
            prefix = f"thermo/{name}/" if name else "thermo/"
            steps = observer.steps
            self._watches.append(_Watch(observer, prefix, self._folder / name, steps, steps))
        self.observers = tuple(watch.observer for watch in self._watches)

    def _take_loss(self, trainer: Trainer, pl_module: LightningModule, outputs: Any) -> None:
        """Keep the loss of a batch until the optimizer steps."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if len(self._watches) != 1 or not isinstance(loss, Tensor):
            return
        if loss.numel() == 1 and loss.is_floating_point():
            parts = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            self._losses.append(loss.detach().reshape(()) * parts)

    def _finish(self, trainer: Trainer, ended: bool = True) -> None:
        self._close()
        dry = trainer.fast_dev_run
        if trainer.is_global_zero and not dry:
            files = [write_artifacts(w.observer, w.folder, ended=ended) for w in self._watches]
            self.written = [path for some in files for path in some]
        self._watches = []

    def _close(self) -> None:
        for observer in self.observers:
            observer.close()


def _optimizers(trainer: Trainer) -> list[Optimizer]:
    """Return the trainer's optimizers without the wrappers added by strategies and users."""
    return [unwrap(optimizer) for optimizer in trainer.optimizers]


def _check_arguments(log_every: object, prog_bar: object, names: object) -> None:
    check_count("log_every", log_every)
    if isinstance(prog_bar, str) or not isinstance(prog_bar, Collection):
        raise TypeError(f"prog_bar must be a tuple of {', '.join(map(repr, BAR))}, got {prog_bar!r}")
    if unknown := [name for name in prog_bar if name not in BAR]:
        raise ValueError(f"prog_bar must hold only {', '.join(map(repr, BAR))}, got {unknown!r}")
    if names is None:
        return
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"names must be None or a list of strings, got {names!r}")
    good = all(isinstance(name, str) and name and "/" not in name for name in names)
    if not good or len(set(names)) != len(names):
        raise ValueError(f"names must be distinct non-empty strings without '/', got {names!r}")
