"""A callback that measures the optimizer of any Hugging Face Trainer."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
import weakref
from collections.abc import Collection
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from thermoopt.adamw import EMA_STEPS
from thermoopt.diagnosis import SURE, DiagnosticReport, diagnose
from thermoopt.integrations.artifacts import write_artifacts
from thermoopt.integrations.scalars import run_scalars
from thermoopt.integrations.unwrapping import unwrap
from thermoopt.observer import LOG_EVERY, Observer

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        "thermoopt.integrations.huggingface needs transformers and accelerate: pip install 'thermoopt[hf]'"
    ) from error

__all__ = ["OBSERVER_FILE", "ThermoCallback"]

OBSERVER_FILE = "thermo_observer.pt"
"""File in a checkpoint's folder with the observer's averages."""


RECOUNT = 20
"""Findings are counted again when the run has grown by 1/RECOUNT of its length and by at least
:data:`~thermoopt.observer.LOG_EVERY` steps: a diagnosis takes a tenth of a second for a hundred layers, which
short logging intervals should not pay each time."""


class ThermoCallback(TrainerCallback):
    """A callback that measures a Trainer's optimizer, logs readings, and writes a report at the end.

    ``Trainer(..., callbacks=[ThermoCallback()])`` is all that is needed, for any optimizer: an
    :class:`~thermoopt.Observer` is attached to the optimizer inside Accelerate's wrapper. Not one bit of a
    parameter changes.

    Every log of the Trainer that has a ``loss`` gets ``thermo/sigma``, ``thermo/r`` and so on
    (:data:`thermoopt.integrations.scalars.SCALARS`) and ``thermo/findings``, the number of
    :func:`~thermoopt.diagnose` findings of HIGH or MEDIUM confidence. So that reporters see them, the
    callback moves to the front of the Trainer's callbacks when training begins. Logged losses, ``eval_loss``
    and ``eval_accuracy`` are passed to the observer.

    At the end the main process writes the files of
    :func:`thermoopt.integrations.artifacts.write_artifacts`. The callback adds nothing to the Trainer's own
    checkpoint files: averages are in a separate file (:data:`OBSERVER_FILE`), which is loaded on resuming if
    it exists and belongs to the same run; ThermoAdamW saves its own.

    Args:
        log_every: measure one step in this many, at least 1; a ThermoAdamW uses its own setting.
        groups: whether to log every parameter group too, as ``thermo/<group>/r``.
        layers: whether to log every layer too, as ``thermo/layer/<name>/r``.
        track, ema_steps: as for :class:`~thermoopt.Observer`.
        output_dir: folder for the report; None uses ``thermo`` in the Trainer's ``output_dir``.

    Raises:
        TypeError, ValueError: as Observer does, and if a Trainer gets two of these callbacks.
        ImportError: if transformers is missing.

    Warns:
        RuntimeWarning: if the optimizer was replaced during training, which restarts the readings; or if no
            Trainer is found, so that reporters before the callback do not see its values.
    """

    def __init__(
        self,
        log_every: int = LOG_EVERY,
        *,
        groups: bool = False,
        layers: bool = False,
        track: Collection[str] = (),
        ema_steps: float = EMA_STEPS,
        output_dir: str | Path | None = None,
    ) -> None:
        self._options: dict[str, Any] = {"log_every": log_every, "track": track, "ema_steps": ema_steps}
        # check the observer's arguments now rather than when training starts
        Observer(None, torch.optim.SGD([torch.zeros(1, device="cpu")], lr=0.0), **self._options).close()
        self._groups, self._layers, self._output_dir = groups, layers, output_dir
        self._observer: Observer | None = None
        self._trainer: weakref.ref[Trainer] | None = None
        self._training = False
        self._findings, self._count_from = 0.0, 0

    @property
    def observer(self) -> Observer | None:
        """The observer of the current or last ``train()``, each with its own; None before training."""
        return self._observer

    @property
    def report(self) -> DiagnosticReport | None:
        """The diagnosis so far; None before training."""
        return None if self._observer is None else diagnose(self._observer)

    # ---------------------------------------------------------------- begin

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise if the Trainer has another ThermoCallback."""
        trainer = _calling_trainer(self)
        if trainer is not None:
            _check_alone(trainer)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Attach an observer, load a checkpoint's averages, and move to the front of the callbacks."""
        trainer = _calling_trainer(self)
        if trainer is None:
            warnings.warn(
                "ThermoCallback was not called by a transformers.Trainer: reporters before it in the list of "
                "callbacks do not see its values",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            _check_alone(trainer)
            callbacks = trainer.callback_handler.callbacks
            callbacks.remove(self)
            callbacks.insert(0, self)
        if optimizer is None:
            raise ValueError(
                "ThermoCallback must belong to a Trainer that trains with an optimizer, got none"
            )
        self._trainer = None if trainer is None else weakref.ref(trainer)
        observer = self._observe(model, unwrap(optimizer))
        self._training = True
        saved = _saved_averages(args, state)
        if saved is not None:
            observer.load_state_dict(saved)

    def _observe(self, model: nn.Module | None, optimizer: Optimizer) -> Observer:
        if self._observer is not None:
            self._observer.close()
        self._observer = Observer(model, optimizer, **self._options)
        self._findings, self._count_from = 0.0, 0
        return self._observer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Switch to another optimizer if the Trainer has done so."""
        trainer = None if self._trainer is None else self._trainer()
        if trainer is None or self._observer is None:
            return
        optimizer = unwrap(trainer.optimizer)
        if optimizer is not self._observer.optimizer:
            warnings.warn(
                f"the Trainer's optimizer was replaced by a {type(optimizer).__name__} after step "
                f"{state.global_step}: ThermoCallback measures that one from now on, and starts over",
                RuntimeWarning,
                stacklevel=2,
            )
            self._observe(self._observer.model, optimizer)

    # ---------------------------------------------------------------- while it trains

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the newest reading to a log of the training loss."""
        if not self._training or self._observer is None or logs is None or "loss" not in logs:
            return
        self._observer.report_loss(logs["loss"])
        reading = self._observer.reading
        if reading is None:
            return
        values = run_scalars(reading, groups=self._groups, layers=self._layers)
        values["thermo/findings"] = self._count_findings(self._observer)
        logs.update(values)
        # Trainer.log puts a copy of the log there before it calls the callbacks
        entry = state.log_history[-1] if state.log_history else {}
        if entry.get("step") == state.global_step and "loss" in entry:
            entry.update(values)

    def _count_findings(self, observer: Observer) -> float:
        if observer.steps >= self._count_from:
            self._findings = float(sum(f.confidence in SURE for f in diagnose(observer).findings))
            self._count_from = observer.steps + max(LOG_EVERY, observer.steps // RECOUNT)
        return self._findings

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Pass the validation loss to the observer."""
        if self._training and self._observer is not None and metrics is not None and "eval_loss" in metrics:
            self._observer.epoch_end(metrics["eval_loss"], metrics.get("eval_accuracy"))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the observer's averages beside a checkpoint's other files."""
        folder = _checkpoint(args, state)
        if not self._training or self._observer is None or args.save_only_model:
            return
        averages = self._observer.state_dict()
        if state.is_world_process_zero and folder.is_dir():
            torch.save({"run": _fingerprint(state), "observer": averages}, folder / OBSERVER_FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Detach, and write the report."""
        self._training, self._trainer = False, None
        if self._observer is None:
            return
        self._observer.close()
        _ = self._observer.reading  # on every process: completes the reading in progress
        if state.is_world_process_zero:
            folder = _output(args) / "thermo" if self._output_dir is None else Path(self._output_dir)
            write_artifacts(self._observer, folder)


def _calling_trainer(callback: TrainerCallback) -> Trainer | None:
    """Return the Trainer that is calling a callback.

    Events carry model, optimizer and loaders, but neither the Trainer nor its list of callbacks, whose order
    decides which of them see a log's additions. During an event a method of the Trainer is on the stack.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if "self" in frame.f_code.co_varnames:
            caller = frame.f_locals.get("self")
            if isinstance(caller, Trainer) and any(c is callback for c in caller.callback_handler.callbacks):
                return caller
        frame = frame.f_back
    return None


def _check_alone(trainer: Trainer) -> None:
    count = sum(isinstance(callback, ThermoCallback) for callback in trainer.callback_handler.callbacks)
    if count > 1:
        raise ValueError(f"callbacks must hold one ThermoCallback per Trainer, got {count}")


def _output(args: TrainingArguments) -> Path:
    assert args.output_dir is not None  # TrainingArguments have a default
    return Path(args.output_dir)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return _output(args) / f"checkpoint-{state.global_step}"


def _fingerprint(state: TrainerState) -> str:
    """Return a hash that identifies a run at a step: of its log so far, which the Trainer restores."""
    return hashlib.sha256(json.dumps(state.log_history, sort_keys=True).encode()).hexdigest()


def _saved_averages(args: TrainingArguments, state: TrainerState) -> dict[str, Any] | None:
    """Return the observer's state from the checkpoint that a run resumes, or None if there is none.

    A callback is not told the checkpoint's folder. The file is looked for where the Trainer saves its
    checkpoints and where the arguments say; a file with the fingerprint of another run is ignored.
    """
    if state.global_step == 0:
        return None
    folders = [_checkpoint(args, state)]
    if args.resume_from_checkpoint is not None:
        folders.append(Path(args.resume_from_checkpoint))
    for folder in folders:
        path = folder / OBSERVER_FILE
        if path.is_file():
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["run"] == _fingerprint(state):
                return saved["observer"]
    return None
