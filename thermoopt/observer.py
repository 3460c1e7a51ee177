"""Observer: the account that ThermoAdamW keeps of itself, of any torch optimizer, by step hooks."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thermoopt.adamw import ThermoAdamW
from thermoopt.arguments import EMA_STEPS
from thermoopt.carried import CarriedTravel
from thermoopt.controllers.base import Controller, Start
from thermoopt.history import History
from thermoopt.hooks import StepHooks, closure_of, is_dry
from thermoopt.layers import add_to_meter
from thermoopt.loop import start_of
from thermoopt.meter import SKIP_CAUSES, Meter, Reading
from thermoopt.pending import Fetch, capturing
from thermoopt.sinks import SinkQueue
from thermoopt.torch_sums import local

__all__ = ["MEASURE_EVERY", "Observer", "as_loss"]

MEASURE_EVERY = 10
"""A measuring pass in torch operations takes as long as a step or two; every 10th keeps that to some percent
(as in :class:`~thermoopt.backends.TorchBackend`)."""


class Observer:
    r"""Reads any torch optimizer as ThermoAdamW reads itself: the same :class:`~thermoopt.meter.Reading`.

    It never changes a parameter, a gradient or an optimizer's state. How it measures:

    * :class:`~thermoopt.ThermoAdamW`: a view of the optimizer's own account; no hooks, no cost.
    * torch's Adam (without coupled weight decay) and AdamW: every quantity, formed from the moments just
      before a measured step, as ThermoAdamW's torch backend forms them.
    * any other optimizer, and a subclass of these with a step of its own: by
      :class:`~thermoopt.displacement.Displacement`, the update direction being
      :math:`U := -(\theta' - (1-\eta\lambda)\theta)/\eta`. Quantities that need Adam's moments (r, phi_star,
      coherence, energy_ratio, gaussianity, the split d_eS and d_iS but for d_iS_wd, R_ie, thermal_loss)
      are NaN; sigma, phi, norms, angular step, decay and the norm balance are right. ``wd_eff`` is decay
      known to be decoupled (AdamW, or a group with ``decoupled_weight_decay``), else 0, and coupled decay
      counts as part of U. ``norm_forecast`` looks ``ema_steps`` ahead.

    Gradients are read when the step begins, as they then are: hooks that clip must have been registered
    before. A closure is let run first. Parameters without a gradient or with a sparse one, and groups
    that step by displacement at lr 0, are left out of a measured step.

    Args:
        model: names the layers where the optimizer's groups do not (``param_names``); None for
            ``group{i}.{j}``.
        optimizer: to observe.
        measure_every: measure every so many steps, from 1. A ThermoAdamW measures as it was told.
        ema_steps: length of the readings' average in optimizer steps, at least 1; likewise.
        sinks: as :class:`~thermoopt.ThermoAdamW` takes them, and for a ThermoAdamW to be given there.

    Raises:
        TypeError, ValueError: for arguments that are not what they should be, and for a model none of whose
            parameters the optimizer holds. The message names the argument; nothing is hooked then.

    References:
        sigma: force times flux; phi: arXiv 2605.21933.
    """

    def __init__(
        self,
        model: torch.nn.Module | None,
        optimizer: Optimizer,
        *,
        measure_every: int = MEASURE_EVERY,
        ema_steps: float = EMA_STEPS,
        sinks: Iterable[Any] = (),
    ) -> None:
        _check_arguments(model, optimizer, measure_every, ema_steps)
        queue = SinkQueue(sinks)
        if queue and isinstance(optimizer, ThermoAdamW):
            raise ValueError(f"sinks is {sinks!r}; allowed is () here: give sinks to the ThermoAdamW itself")
        self._optimizer = optimizer
        self._names: dict[Tensor, str] = {}
        self._hooks: StepHooks | None = None
        if isinstance(optimizer, ThermoAdamW):
            self._source: ThermoAdamW | StepHooks = optimizer
        else:
            if model is not None:
                self._names.update((p, name) for name, p in model.named_parameters())
            self._hooks = StepHooks(optimizer, self._names, measure_every, float(ema_steps), queue)
            self._source = self._hooks
        self._carried: CarriedTravel | None = None
        self._handle: Any = None
        self._every = 1
        self._handed = 0
        self._loss: float | None = None
        self._coming: Fetch | None = None
        self._bad_losses = 0

    # ---------------------------------------------------------------- what users read

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer observed."""
        return self._optimizer

    @property
    def reading(self) -> Reading | None:
        """The last completed reading, or None before the first. Waits for sums still on a device."""
        return self._source.reading

    @property
    def history(self) -> History:
        """The bounded record of readings."""
        return self._source.history

    @property
    def skipped(self) -> dict[str, int]:
        """Measured steps that moved nothing, by cause."""
        if self._hooks is not None:
            return self._hooks.skipped
        reading = self.reading
        return dict.fromkeys(SKIP_CAUSES, 0) if reading is None else dict(reading.skipped)

    @property
    def loss(self) -> float | None:
        """The last finite loss reported, or None."""
        self._settle_loss()
        return self._loss

    @property
    def bad_losses(self) -> int:
        """How many losses reported were NaN or infinite."""
        self._settle_loss()
        return self._bad_losses

    def step(self, loss: float | Tensor | None = None) -> Reading | None:
        """Record a loss and return the newest reading: call it after ``optimizer.step()``.

        Measuring is done by the hooks, whether this is called or not.

        Args:
            loss: as for :meth:`report_loss`; None reports nothing.
        """
        if loss is not None:
            self.report_loss(loss)
        return self.reading

    def report_loss(self, loss: float | Tensor) -> None:
        """Record the loss of a step; one that is not finite is counted and leaves the last in place.

        Args:
            loss: a number, or a tensor with one element, which is not waited for.

        Raises:
            TypeError, ValueError: if it is neither.
        """
        value = as_loss(loss)
        self._settle_loss()
        self._coming = Fetch(value)
        if self._coming.ready():
            self._settle_loss()

    def _settle_loss(self) -> None:
        if self._coming is not None:
            value = float(self._coming.numpy())
            self._coming = None
            if math.isfinite(value):
                self._loss = value
            else:
                self._bad_losses += 1

    # ---------------------------------------------------------------- for those who drive a controller

    def serve(self, controller: Controller) -> None:
        """Let :meth:`fresh_reading` give what a controller wants, until :meth:`close`.

        Readings come every ``controller.every`` steps at most, and with the sums it needs of
        :data:`thermoopt.travel.TRAVEL_SUMS`, measured just before the step (of these only ``"distance"``;
        see :class:`~thermoopt.carried.CarriedTravel` for where their start is kept). A controller served
        before is served no more.
        """
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._carried = None
        self._every = controller.every or 1
        if self._hooks is not None and controller.every is not None:
            self._hooks.record_every = controller.every
        if controller.needs:
            self._carried = CarriedTravel(self._optimizer, controller.needs)
            self._handle = self._optimizer.register_step_pre_hook(self._before)

    @torch.compiler.disable
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Measure the distance from the start where the coming step's reading may be handed over."""
        if capturing() or (closure_of(args, kwargs) is None and is_dry(optimizer)):
            return
        assert self._carried is not None
        self._carried.follow()
        step = self._source.steps + 1
        if step % self._source.measure_every == 0 and self._due(step):
            self._carried.measure(step)

    def _due(self, step: int) -> bool:
        """Whether a reading of a step is far enough from the last one handed over."""
        return self._handed == 0 or not 0 <= step - self._handed < self._every

    def fresh_reading(self) -> Reading | None:
        """Return the newest reading, with the last loss, if it was not handed over yet, else None.

        Each is handed over once, also across a checkpoint. Nothing is waited for (a loss still on a device
        is the next reading's). With hooks only readings that went to the history count.
        """
        if isinstance(self._source, ThermoAdamW):
            reading = self._source.newest_reading()
            if reading is not None and not self._due(reading.step):
                return None
        else:
            reading = self._source.fresh_reading()
        if reading is None:
            return None
        self._handed = reading.step
        travel = None if self._carried is None else self._carried.take(reading.step)
        return replace(reading, loss=self._loss, travel=travel)

    def start(self) -> Start:
        """Describe the parameters as they are now, for :meth:`Controller.attach`.

        ``lr`` and ``wd`` are 0.0 where a group has no such key; ``beta1`` and ``beta2`` are 0.0 but for
        torch's Adam and AdamW and their subclasses: Lion's betas, say, are of no second moment.
        """
        groups = self._optimizer.param_groups
        if not isinstance(self._optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            groups = [{**group, "betas": (0.0, 0.0)} for group in groups]
        layout = Meter(1)
        for group in groups:
            add_to_meter(layout, group, self._names)
        return start_of(
            groups,
            layout,
            rms=[_rms(p) for group in groups for p in group["params"]],
            lr=[float(group.get("lr") or 0.0) for group in groups],
            wd=[float(group.get("weight_decay") or 0.0) for group in groups],
        )

    # ---------------------------------------------------------------- life

    def close(self) -> None:
        """Remove the hooks. What was read stays."""
        if self._hooks is not None:
            self._hooks.close()
        if self._handle is not None:
            self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return averages, counters and the last loss: floats, ints, and a small tensor a group.

        A ThermoAdamW carries its averages itself. The history is not part of it.
        """
        state: dict[str, Any] = {"handed": self._handed, "loss": self.loss, "bad_losses": self._bad_losses}
        if self._carried is not None:
            state["travel"] = self._carried.state_dict()
        return state if self._hooks is None else {**state, **self._hooks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave.

        Raises:
            ValueError: if the state holds more groups than the optimizer; nothing has changed then.
        """
        if self._hooks is not None:
            self._hooks.load_state_dict(state)
        if self._carried is not None and "travel" in state:
            self._carried.load_state_dict(state["travel"])
        self._handed, self._bad_losses = int(state["handed"]), int(state["bad_losses"])
        self._loss, self._coming = state["loss"], None


def as_loss(loss: object) -> Tensor:
    """Return a loss as a 0-d tensor.

    Raises:
        TypeError, ValueError: unless it is a number or a floating tensor with one element.
    """
    if isinstance(loss, Tensor):
        if loss.numel() != 1 or not loss.is_floating_point():
            raise ValueError(
                f"loss is a tensor of shape {tuple(loss.shape)} and {loss.dtype}; allowed is one "
                "floating-point element"
            )
        return loss.detach().reshape(())
    if isinstance(loss, bool) or not isinstance(loss, numbers.Real):
        raise TypeError(f"loss is {loss!r}; allowed is a number or a tensor with one element")
    return torch.tensor(float(loss), dtype=torch.float64)


@torch.no_grad()
def _rms(p: Tensor) -> float:
    if p.is_meta or p.numel() == 0:
        return 0.0
    x = local(p)
    x = torch.view_as_real(x) if x.is_complex() else x
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return float(torch.linalg.vector_norm(x, dtype=dtype)) / math.sqrt(x.numel())


def _check_arguments(model: object, optimizer: object, measure_every: object, ema_steps: object) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is {optimizer!r}; allowed is a torch.optim.Optimizer")
    if model is not None:
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model is {model!r}; allowed is None or a torch.nn.Module")
        held = {p for group in optimizer.param_groups for p in group["params"]}
        if held.isdisjoint(model.parameters()):
            raise ValueError(
                f"model is a {type(model).__name__} none of whose parameters the optimizer holds; allowed "
                "is None or the model that the optimizer steps"
            )
    if isinstance(measure_every, bool) or not isinstance(measure_every, int):
        raise TypeError(f"measure_every is {measure_every!r}; allowed is a whole number from 1")
    if measure_every < 1:
        raise ValueError(f"measure_every is {measure_every!r}; allowed is a whole number from 1")
    if isinstance(ema_steps, bool) or not isinstance(ema_steps, (int, float)):
        raise TypeError(f"ema_steps is {ema_steps!r}; allowed is a number from 1")
    if not (math.isfinite(ema_steps) and ema_steps >= 1):
        raise ValueError(f"ema_steps is {ema_steps!r}; allowed is a number from 1")
