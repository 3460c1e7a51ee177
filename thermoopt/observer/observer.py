"""Observer: measures any torch optimizer through step hooks, as ThermoAdamW measures itself."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thermoopt.account import History, Losses
from thermoopt.account.reading import Reading, seen_by_all
from thermoopt.adamw import EMA_STEPS
from thermoopt.controllers import Controller, Start
from thermoopt.observer.arguments import check_arguments
from thermoopt.observer.carried_start import CarriedTravel
from thermoopt.observer.run_facts import rate_kind, run_facts
from thermoopt.observer.run_reports import RunReports
from thermoopt.observer.serving import Serving
from thermoopt.observer.source import source_of
from thermoopt.observer.step_hooks import closure_of, is_dry, when_gradients_are_there
from thermoopt.observer.tracker import Tracker
from thermoopt.observer.watched_layers import ModelNames, Watched
from thermoopt.observer.whole_steps import on_whole_steps
from thermoopt.physics import Standing
from thermoopt.sinks import SinkQueue
from thermoopt.tensors import capturing

__all__ = ["LOG_EVERY", "Observer"]

LOG_EVERY = 10
"""A measuring pass takes half to all of a fused step's time, one in torch operations that of a step or two;
one step in 10 keeps that to a few percent, as in :class:`~thermoopt.adamw.torch_backend.TorchBackend`."""

MAX_IDLE_CALLS = 10
"""Calls of :meth:`Observer.step` before the optimizer's first step that raise no error: a GradScaler that
starts too high, at 2**16, skips a step for each factor of 2, and gradients may be accumulated."""


class Observer(RunReports):
    r"""A monitor that measures any torch optimizer just as ThermoAdamW measures itself.

    It gives the same :class:`~thermoopt.account.Reading`, and never changes parameters, gradients or state:

    * :class:`~thermoopt.ThermoAdamW`: a view of the optimizer's own account; no hooks, no cost.
    * torch's Adam (without coupled weight decay) and AdamW: every quantity, formed from the moments just
      before a measured step, as ThermoAdamW's torch backend forms them: on CPU in one reading pass of the
      native kernel over the tensors it can take, by torch operations over all others. If an average spans 5
      measured steps or more, that pass reads every other block of 8192 elements of tensors of 131,072 or
      more, and the other blocks at the next measured step: on some machines reading takes as long as a step.
    * any other optimizer, and a subclass of these with a step of its own: by
      :class:`~thermoopt.observer.displacement.Displacement`, the update direction being
      :math:`U := -(\theta' - (1-\eta\lambda)\theta)/\eta`. Quantities that need Adam's moments (r, phi_star,
      coherence, energy_ratio, gaussianity, the split d_eS and d_iS but for d_iS_wd, R_ie, thermal_loss,
      rho_momentum) are NaN; sigma, phi, norms, angular step, decay and the norm balance are exact. ``wd_eff``
      is decay known to be decoupled (AdamW, or a group with ``decoupled_weight_decay``), else 0, and coupled
      decay counts as part of U. ``norm_forecast`` looks ``ema_steps`` ahead.

    Gradients are read at the start of the step, after the closure has run. Register clipping hooks before
    creating the observer. Parameters without a gradient or with a sparse one, and groups that are measured by
    displacement and have lr 0, are left out of a measured step.

    Args:
        model: gives the types of layers and the names of those that the optimizer's groups do not name
            (``param_names``); None: ``group{i}.{j}``. Sinks and controller of a ThermoAdamW keep its own
            names. What wrappers add to names is removed. Parameters not in the optimizer are ignored.
        optimizer: the optimizer to observe.
        log_every: measure one step in this many (:func:`~thermoopt.account.measured_steps`), >= 1. Ignored
            for a ThermoAdamW, which decides by itself.
        track: quantities to measure that need memory: ``"rho"``, ``"distance"`` or both. Each keeps one
            element in 16 of the gradients or parameters (:class:`~thermoopt.observer.tracker.Tracker`). Those
            not tracked are NaN. With a ThermoAdamW it takes a hook, and the observer keeps its own history.
        ema_steps: length of the readings' average in optimizer steps, >= 1; ignored likewise.
        sinks: as for :class:`~thermoopt.ThermoAdamW`; with a ThermoAdamW, pass them to it instead.

    Raises:
        TypeError, ValueError: for invalid arguments, and for a model that shares no parameter with the
            optimizer. The message names the argument; nothing is hooked then.

    References:
        sigma: force times flux; phi: arXiv 2605.21933; the tool and its names: thermoclaw.
    """

    def __init__(
        self,
        model: torch.nn.Module | None,
        optimizer: Optimizer,
        log_every: int = LOG_EVERY,
        *,
        track: Collection[str] = (),
        ema_steps: float = EMA_STEPS,
        sinks: Iterable[Any] = (),
    ) -> None:
        check_arguments(model, optimizer, log_every, track, ema_steps)
        super().__init__()
        self._model, self._optimizer = model, optimizer
        names = ModelNames(model)
        queue = SinkQueue(sinks)
        self._source = source_of(optimizer, names, log_every, float(ema_steps), queue, self._complete)
        self.sinks, source = self._source.sinks, self._source
        self._watched = Watched(model, optimizer, names, lambda: source.kept_names)
        self._renamed: tuple[tuple[str, ...], dict[str, str]] = ((), {})
        self._losses = Losses()
        self._tracker: Tracker | None = None
        self._own_history: History | None = None
        self._handles: list[Any] = []
        if track:
            self._begin_tracking(track)
        self._serving = Serving(optimizer, self._source)
        self._idle_calls = 0
        self._made_at, self.ema_steps = self._source.steps, self._source.ema_steps
        self._completed: tuple[Reading, Reading] | None = None
        self.sinks.introduce(self, run_facts)

    # ---------------------------------------------------------------- what users read

    @property
    def model(self) -> torch.nn.Module | None:
        """The model that was passed, or None."""
        return self._model

    @property
    def optimizer(self) -> Optimizer:
        """The observed optimizer."""
        return self._optimizer

    @property
    def steps(self) -> int:
        """Optimizer steps taken, as :attr:`Reading.step` counts them."""
        return self._source.steps

    @property
    def reading(self) -> Reading | None:
        """The last completed reading, or None before the first. Waits for sums still on a device."""
        reading = self._source.reading
        return None if reading is None else self._complete(reading)

    @property
    def history(self) -> History:
        """The bounded record of readings, each with the last loss reported by its step."""
        history = self._source.history
        if self._own_history is not None:
            self._record()
            self._own_history.put_standings(history.standings)
            history = self._own_history
        elif len(history) and (given := self._given(history.layer_names)):
            history = history.renamed(given)
        if len(self.losses):
            history.put_losses(self._losses.steps, self._losses.values)
        return history

    @property
    def measure_every(self) -> int:
        """One step in this many is measured."""
        return self._source.measure_every

    @property
    def skipped(self) -> dict[str, int]:
        """Measured steps that moved nothing, by cause."""
        return self._source.skipped

    @property
    def losses(self) -> Losses:
        """The losses reported, ``steps`` and ``values``: at most 10,000, evenly spaced over the run."""
        self._losses.settle(wait=True)
        return self._losses

    @property
    def loss(self) -> float | None:
        """The last finite loss reported, or None."""
        return self.losses.last

    @property
    def bad_losses(self) -> int:
        """Number of steps whose loss was NaN or infinite."""
        return self.losses.bad

    @property
    def layer_types(self) -> dict[str, str]:
        """Type of each layer, of :data:`thermoopt.param_groups.LAYER_TYPES`."""
        return self._watched.types()

    @property
    def start_norms(self) -> dict[str, float]:
        """Squared norm [th**2] of each layer when the observer was created or the layer was added."""
        return self._watched.start_norms()

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the layers that take no gradient now (``requires_grad`` is False)."""
        return self._watched.frozen()

    @property
    def matrices(self) -> frozenset[str]:
        """Names of the layers of two or more dimensions."""
        return self._watched.matrices()

    @property
    def rate_kind(self) -> str:
        """What ``lr_eff`` stands for with this optimizer (:data:`thermoopt.physics.LR`)."""
        return rate_kind(self._optimizer)

    # ---------------------------------------------------------------- what users call

    def step(self, loss: float | Tensor | None = None) -> Reading | None:
        """Record a loss and return the newest reading that has arrived. Call it after ``optimizer.step()``.

        The hooks measure whether or not this is called, and however often.

        Args:
            loss: as for :meth:`report_loss`; None reports nothing.

        Raises:
            RuntimeError: at the 10th call if the optimizer has taken no step since the observer was created.
        """
        if self._source.steps == self._made_at:
            self._idle_calls += 1
            if self._idle_calls >= MAX_IDLE_CALLS:
                raise RuntimeError(
                    f"observer.step() was called {self._idle_calls} times, but its optimizer ("
                    f"{type(self._optimizer).__name__}) has taken no step since: call it after "
                    "optimizer.step(), and create the observer with the optimizer whose step() that is"
                )
        if loss is not None:
            self.report_loss(loss)
        reading = self._source.newest_reading()
        return None if reading is None else self._complete(reading)

    def report_loss(self, loss: float | Tensor) -> None:
        """Record the loss of a step; a loss that is not finite is only counted.

        Args:
            loss: a number, or a tensor with one element; a tensor on a device is not waited for.

        Raises:
            TypeError, ValueError: if it is neither.
        """
        self._losses.report(self._source.steps, loss)
        self._source.report_loss(loss)

    # ---------------------------------------------------------------- tracking

    def _begin_tracking(self, track: Collection[str]) -> None:
        optimizer = self._optimizer
        if self._source.is_own:
            self._own_history = History()
            self._handles += [
                optimizer.register_step_post_hook(on_whole_steps(lambda *_: self._record())),
                optimizer.register_load_state_dict_post_hook(lambda _: self._rewind(self._source.steps)),
            ]
        self._tracker = Tracker(optimizer, track, self._source.ema_steps)
        self._handles.append(optimizer.register_step_pre_hook(on_whole_steps(self._track)))

    def _track(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Have the tracker read the coming step."""
        tracker, step, every = self._tracker, self._source.steps + 1, self._source.measure_every
        if tracker is None or capturing() or (closure_of(args, kwargs) is None and is_dry(optimizer)):
            return None
        return when_gradients_are_there(args, kwargs, lambda times: tracker.read(step, every, times))

    def _record(self) -> None:
        """Append the newest reading of a tracked ThermoAdamW to the history when it is due."""
        source, history = self._source, self._own_history
        if history is None:
            return
        due = history.last_step + source.record_every if len(history) else 0
        reading = source.newest_reading() if source.steps >= due else None
        if reading is not None and reading.step >= due:
            history.append(self._complete(reading))

    def _rewind(self, step: int) -> None:
        if self._own_history is not None:
            self._own_history.rewind(step)

    def _complete(self, reading: Reading) -> Reading:
        """Return a reading of the source with the tracked terms and the last loss."""
        loss = self._losses.last
        given = self._given(reading.names)
        if self._tracker is None and loss is None and not given:
            return reading
        if self._completed is None or self._completed[0] is not reading:
            overlaid = reading if self._tracker is None else self._tracker.overlay(reading)
            if given:
                overlaid = replace(overlaid, names=tuple(given.get(n, n) for n in reading.names))
            self._completed = reading, replace(overlaid, loss=loss)
        elif self._completed[1].loss != loss:
            self._completed = reading, replace(self._completed[1], loss=loss)
        return self._completed[1]

    def _given(self, names: Iterable[str]) -> dict[str, str]:
        """Return the model's names of a ThermoAdamW's layers, by that optimizer's own, where they differ."""
        if self._model is None or not self._source.is_own:
            return {}
        if self._renamed[0] != (names := tuple(names)):
            self._renamed = names, self._watched.given_names()
        return self._renamed[1]

    # ---------------------------------------------------------------- for those who drive a controller

    def serve(self, controller: Controller) -> CarriedTravel | None:
        """Make :meth:`fresh_reading` return what a controller wants, until :meth:`close`.

        Readings come at most every ``controller.every`` steps, with those of
        :data:`thermoopt.physics.TRAVEL_SUMS` that it needs, measured just before the step (see
        :class:`~thermoopt.observer.CarriedTravel`, which is returned and takes the steps' ``weights``). A
        controller served before is served no longer.
        """
        return self._serving.begin(controller)

    def fresh_reading(self) -> Reading | None:
        """Return the newest reading, with the last loss, if it has not been handed over yet, else None.

        Each reading is handed over only once, even across a checkpoint. From a device it comes one step late
        and is waited for, so that runs are repeatable and ranks get the same reading. On CPU it is that of
        the last step; sums of sharded layers are waited for, so that a run does not depend on the number of
        ranks. A loss that is still on a device belongs to the next reading. With hooks, only readings that
        went to the history count.
        """
        found = self._serving.reading()
        if found is None:
            return None
        self._losses.settle(wait=False)
        return seen_by_all(replace(self._complete(found[0]), travel=found[1]))

    def stand(self, step: int, standings: Collection[Standing], actions: Sequence[Any]) -> None:
        """Keep what a controller made of a reading (:meth:`thermoopt.account.LedgerView.stand`)."""
        self._source.stand(step, standings, actions)

    def start(self) -> Start:
        """Describe the parameters as they are now, for :meth:`Controller.attach`."""
        self._source.follow_groups()
        return self._watched.start()

    def own_names(self) -> dict[str, str]:
        """Return the layer names of a ThermoAdamW by the observer's names, for those that differ."""
        return {b: a for a, b in self._watched.given_names().items()}

    # ---------------------------------------------------------------- life

    def close(self) -> None:
        """Remove the hooks; readings made so far are kept."""
        self._source.close()
        self._serving.close()
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return averages, counters, epochs, the norms at the start and the last loss: plain data.

        These are floats, ints and a small tensor per group; with ``track``, also what is tracked, under
        ``"tracked"``. A ThermoAdamW carries its averages itself. History and losses are not included.
        """
        state: dict[str, Any] = {
            "handed": self._serving.handed,
            "loss": self.loss,
            "bad_losses": self.bad_losses,
            "step": self.steps,
            "epochs": self.epochs,
            "start_norms": self.start_norms,
        }
        if self._serving.carried is not None:
            state["travel"] = self._serving.carried.state_dict()
        if self._tracker is not None:
            state["tracked"] = self._tracker.state_dict()
        return {**state, **self._source.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        A ThermoAdamW keeps its averages in its own state. An observer that measures through hooks therefore
        starts its averages afresh, with a warning, if the state is from an observer of a ThermoAdamW.

        Raises:
            ValueError: if the state holds more groups or layers than the optimizer; nothing has changed then.
        """
        tracked = state.get("tracked")
        if self._tracker is not None and tracked is not None:
            self._tracker.check(tracked)
        if "groups" in state:
            self._source.load_state_dict(state)
        elif not self._source.is_own:
            warnings.warn(
                "the observer's state is from a ThermoAdamW, which keeps its averages itself: the averages "
                f"of this {type(self._optimizer).__name__} start afresh",
                RuntimeWarning,
                stacklevel=2,
            )
        if self._tracker is not None:
            self._tracker.load_state_dict(tracked)
        if self._serving.carried is not None and "travel" in state:
            self._serving.carried.load_state_dict(state["travel"])
        self._serving.handed, step = int(state["handed"]), int(state.get("step", self._source.steps))
        self._rewind(step)
        self._losses.rewind(step, state["loss"], int(state["bad_losses"]))
        self._epochs = [dict(epoch) for epoch in state.get("epochs", ())]
        self._watched.put_start_norms(state.get("start_norms", {}))
        self._made_at, self._idle_calls, self._completed = self._source.steps, 0, None
