"""ThermoScheduler: a learning-rate shape for any torch optimizer, with an optional controller on top."""

from __future__ import annotations

import functools
import math
import numbers
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from thermoopt.account import as_leaf, as_loss, from_leaf, with_present_names
from thermoopt.account.reading import Reading
from thermoopt.adamw import EMA_STEPS, ThermoAdamW, check_hookable
from thermoopt.controllers import Controller, Scales, Start, check_claim, claim, restore
from thermoopt.observer import LOG_EVERY, CarriedTravel, Observer
from thermoopt.physics.travel import Weights
from thermoopt.scheduler.arguments import check_control, check_lr, check_state, observer_first
from thermoopt.scheduler.clock import count_steps
from thermoopt.scheduler.copies import taken_apart, told_before
from thermoopt.scheduler.plan import GroupSchedule, SchedulePlan, copied, scaled_lrs, untracked, write_lrs
from thermoopt.tensors import follow_groups, same_members
from thermoopt.traits import put_run_length

__all__ = ["ThermoScheduler"]

ROUNDING = 1e-12
"""Share of a group's lr that counts as 0: shapes end there to rounding."""


class ThermoScheduler(LRScheduler):
    r"""Learning-rate schedule with warm-up for any torch optimizer, with or without a controller.

    In step n + 1, where n is the number of optimizer steps taken,

    .. math::
        \eta = \eta_{base}\, s(n)\, \mathrm{lr\_scale},\qquad \lambda = \lambda_{base}\, \mathrm{wd\_scale}

    *Shape.* During warm-up s rises from 1/w to 1 in w steps. It is then ``"constant"``, ``"linear"``,
    ``"cosine"``, ``"trapezoid"`` (constant, linear over the second half) or ``"wsd"`` (constant, then
    1 - sqrt over the last fifth), each down to ``eta_min``, or ``"inverse_time"``, 1/(1 + rate t) with
    t = n - w, towards it (:func:`thermoopt.controllers.cooling.cooling_factor`). Without a controller the
    values equal torch's own bit for bit: LinearLR, CosineAnnealingLR, LambdaLR, joined by SequentialLR. After
    ``total_steps`` the lr keeps its final value. A group whose lr is not above ``eta_min`` keeps its lr.

    *Time* is the optimizer's: extra calls to :meth:`step` between optimizer steps do nothing; missed calls
    are caught up. A step that a GradScaler skips does not count, unless the optimizer is fused (torch then
    calls its step anyway). A checkpoint library's dry step does not count.

    *Ownership.* lr, and weight decay once a controller has asked for a wd factor other than 1, are always
    computed from the base values (``initial_lr``; the decay at construction), so a value written from outside
    lasts only until the next :meth:`step`. Frozen layers that are to be trained later need an lr above 0 from
    the start. An lr that is a Tensor stays one. The base of a group that is added during the run is the lr it
    was added with; the group follows the shape from the next :meth:`step` on.

    *Controller.* Once per optimizer step the controller sees the newest reading of an
    :class:`~thermoopt.observer.Observer` and returns the scales. A ThermoAdamW applies layer factors
    directly. Any other optimizer has one lr per group, which is multiplied by the geometric mean of the
    group's layer factors, weighted by elements (a thermostat's rate D then moves the group by D times that
    mean of its layers' units); with one layer per group this is the layer's own factor. If the size of an
    optimizer's update is not known in advance (all but Adam and AdamW), a law of absolute rates, as in
    :func:`thermoopt.autotune`, leaves the given lr unchanged until the first reading.

    *Copies* and pickles include a copy of the optimizer, as torch's do, but not an observer's history.

    *Distance.* For a law that uses the distance from the start (autotune's), a sample of the parameters
    before the first step, one element in 17 (all, up to 16,384), is kept in the optimizer's groups as
    ``"thermo_travel"``, as torch keeps ``initial_lr``: it is part of ``optimizer.state_dict()``, and the two
    states may be loaded in either order. If an optimizer's state has none, the distance is measured from the
    parameters at the next step, with a warning. The layers' units are those at construction: load pre-trained
    weights first.

    Args:
        optimizer: any torch optimizer.
        total_steps: length of the run in optimizer steps, at least 1; None only with ``"constant"`` and
            ``"inverse_time"``.
        warmup_steps: steps of linear warm-up, 0 to ``total_steps``.
        shape: see above.
        controller: turns readings into scales; None uses the plain schedule, which measures nothing.
        eta_min: lr at the end of the shape, in units of lr, >= 0.
        rate: dimensionless decay per step for ``"inverse_time"``, curvature times initial lr, > 0.
        observer: measures for the controller; it may be passed first, before the optimizer. None creates one
            with the averaging time that the controller wants.
        last_epoch: as in torch: -1, or the optimizer steps taken minus one if groups hold an ``initial_lr``.

    Raises:
        TypeError, ValueError: for invalid arguments, before anything has changed; the message names the
            argument, its value and what is allowed. A controller that cools is rejected with a shape other
            than ``"constant"`` (the two would multiply), one of absolute rates with an optimizer that finds
            its own step size (Prodigy, D-Adaptation), and any with a ThermoAdamW that has its own.
        KeyError: from torch, for ``last_epoch`` >= 0 without ``initial_lr``.

    References:
        linear to zero: arXiv 2502.15938; 1 - sqrt: arXiv 2405.18392; 1/t: arXiv 2505.10559.
    """

    @observer_first
    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None,
        warmup_steps: int = 0,
        shape: str = "cosine",
        controller: Controller | None = None,
        eta_min: float = 0.0,
        *,
        rate: float | None = None,
        observer: Observer | None = None,
        last_epoch: int = -1,
    ) -> None:
        of_subclass = set(vars(self))
        check_hookable(optimizer)
        check_lr(optimizer)
        self._plan = SchedulePlan(total_steps, warmup_steps, shape, eta_min, rate)
        lrs = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        if eta_min > max(lrs, default=math.inf):
            raise ValueError(f"eta_min must be at most the optimizer's lr, {max(lrs)!r}, got {eta_min!r}")
        check_control(optimizer, controller, observer, shape)
        if controller is not None:
            claim(controller, self)
        self._begun = False
        super().__init__(optimizer, last_epoch)
        self._begun = True
        self._controller, self._observer, self._has_own_observer = controller, observer, observer is None
        self._carried: CarriedTravel | None = None
        if controller is not None and observer is None:
            self._observer = Observer(
                None,
                optimizer,
                log_every=min(LOG_EVERY, controller.every or LOG_EVERY),
                ema_steps=controller.ema_steps or EMA_STEPS,
            )
            weakref.finalize(self, self._observer.close)
        if controller is not None and self._observer is not None:
            self._carried = self._observer.serve(controller)
        self._held: list[GroupSchedule] = []
        self._members: list[list[Tensor]] = []
        self._used_up = False
        self._start: Start | None = None
        self._rms: dict[str, float] = {}
        self._layer_factors: dict[str, float] = {}
        self._handed_on: dict[str, float] = {}  # factors that a ThermoAdamW applies itself
        self._named: Mapping[str, float] = {}
        self._idle: frozenset[str] = frozenset()
        self.last_epoch, self._seen, self._taken = last_epoch, last_epoch, last_epoch + 1
        own = weakref.ref(self)
        weakref.finalize(self, count_steps(optimizer, lambda: _count(own)))
        put_run_length(optimizer, self._plan.length, controller)
        self._anew = controller is not None and not controller.begun  # else it goes on with an earlier run
        self._own_names = frozenset(vars(self)) - of_subclass | {"_own_names"}
        self._advance()

    def step(self, loss: float | Tensor | Reading | None = None) -> None:
        """Set the rates of the next optimizer step; call it after ``optimizer.step()``.

        Args:
            loss: passed to the observer if there is one, without waiting for a device; the observer only
                counts NaN and infinity. A :class:`~thermoopt.account.Reading` (as returned by
                ``observer.step()``) is accepted and ignored.

        Raises:
            TypeError: for an integer, since time is the optimizer's and an epoch is not accepted.
            TypeError, ValueError: for anything else that is not a loss, before anything has changed.
        """
        if not self._begun:  # torch's constructor calls step() once itself
            self._step_count += 1
            return
        if loss is not None and not isinstance(loss, Reading):
            if isinstance(loss, numbers.Integral):
                raise TypeError(
                    f"loss must be None, a float or a tensor with one element, got {loss!r}; an epoch is "
                    "not accepted, since time is counted in optimizer steps"
                )
            value = as_loss(loss)
            if self._observer is not None:
                self._observer.report_loss(value)
        if self._step_count == 1 and self._taken == self._seen:
            early = "Detected call of `lr_scheduler.step()` before `optimizer.step()`: it has no effect."
            warnings.warn(early, UserWarning, stacklevel=2)
        self._step_count += 1
        self._advance()

    def get_lr(self) -> list[float | Tensor]:
        """Return the lr of each group for the coming step, including the controller's scales.

        It first catches up with the optimizer, as :meth:`step` does, because ignite calls it instead of that.
        """
        if self._taken > self._seen:
            self._advance()
        return scaled_lrs(self._held, self._start, self._layer_factors, self._idle, self.optimizer)

    @property
    def controller(self) -> Controller | None:
        """The controller, or None."""
        return self._controller

    @property
    def observer(self) -> Observer | None:
        """The observer that measures for the controller, or None."""
        return self._observer

    def _advance(self) -> None:
        """Advance schedule and controller to the optimizer's time and write the rates."""
        self._take_in_groups()
        controller, observer = self._controller, self._observer
        begin, self._seen = self._seen + 1, self._taken
        for epoch in range(begin, self._taken + 1):
            if controller is not None and observer is not None:
                check_claim(controller, self)
                reading = observer.fresh_reading() if epoch == self._taken else None
                with np.errstate(all="ignore"):  # a law may add up what a diverging run reads
                    self._apply(controller.update(reading, epoch + 1))
                if reading is not None:
                    observer.stand(reading.step, controller.standing.values(), controller.log)
        self.last_epoch = self._taken
        for held in self._held:
            held.advance(self._plan, self.last_epoch)
        self._write()
        self._say_if_used_up()

    def _say_if_used_up(self) -> None:
        """Warn once that a step was taken at lr 0 because the schedule had ended."""
        total = self._plan.total_steps
        if total is None or self._taken <= total or self._used_up or self._plan.shape == "constant":
            return
        for lr, held in zip(self._last_lr, self._held, strict=True):
            on_device = isinstance(lr, Tensor) and lr.device.type != "cpu"
            if on_device or float(lr) > ROUNDING * float(held.base):  # one on a device is not waited for
                return
        self._used_up = True
        warnings.warn(
            f"step {self._taken} was taken after the end of the schedule, total_steps = {total}, where the "
            "lr is 0: nothing moves any more. Set total_steps to the length of the run, or eta_min above 0",
            RuntimeWarning,
            stacklevel=4,
        )

    def _take_in_groups(self) -> None:
        """Follow groups that were added, removed or whose tensors changed; each keeps its own schedule."""
        groups = self.optimizer.param_groups
        members = [list(group["params"]) for group in groups]
        if same_members(members, self._members):
            return
        self._begin_anew()
        kept = follow_groups(self._members, members)
        if self._start is not None:
            for group, old in zip(groups, kept, strict=True):
                if old is not None:  # its name tells a controller which it is, wherever it stands now
                    group.setdefault("name", self._start.group_names[old])
        held: list[GroupSchedule] = []
        for group, old in zip(groups, kept, strict=True):
            if old is not None:
                held.append(self._held[old])
                continue
            group.setdefault("initial_lr", copied(group["lr"]))
            base, wd = copied(group["initial_lr"]), float(group.get("weight_decay") or 0.0)
            held.append(GroupSchedule(base, wd, self._plan.floor(base)))
        self._held, self._members = held, members
        self.base_lrs = [copied(own.base) for own in held]
        self._attach()

    def _begin_anew(self) -> None:
        """Let the controller begin with groups that came before it saw a step, as a ThermoAdamW's does."""
        if self._seen == 0 and self._start is not None and self._controller is not None and self._anew:
            with told_before():
                self._controller.reset()
            self._seen = -1

    def _attach(self) -> None:
        """Describe the parameters to the controller, as they were when they were added."""
        if self._controller is None or self._observer is None:
            return
        now = self._observer.start()
        self._start = replace(
            now,
            rms=tuple(self._rms.setdefault(name, rms) for name, rms in zip(now.names, now.rms, strict=True)),
            lr=tuple(float(held.base) for held in self._held),
            wd=tuple(held.wd for held in self._held),
        )
        self._controller.attach(self._start)

    def _apply(self, scales: Scales) -> None:
        lrs, wds = scales.spread(len(self._held))
        if self._carried is not None:
            self._carried.weights = scales.weights
        if scales.layers is not self._named:  # the same mapping again says nothing new
            self._put_factors(scales.layers)
        self._named, self._idle = scales.layers, scales.idle
        for held, lr, wd in zip(self._held, lrs, wds, strict=True):
            held.lr_scale, held.wd_scale = lr, wd
            held.owns_wd |= wd != 1.0

    def _put_factors(self, layers: Mapping[str, float]) -> None:
        """Take in layer factors; those of layers that are no longer there say nothing."""
        names = () if self._start is None else self._start.names
        layers = {name: f for name, f in layers.items() if name in names or name not in self._rms}
        if isinstance(self.optimizer, ThermoAdamW):
            own = {} if self._observer is None else self._observer.own_names()
            self.optimizer.set_layer_factors({own.get(name, name): f for name, f in layers.items()})
            self._handed_on.update(layers)
            return
        for name in layers:
            if name not in names:
                raise KeyError(f"layer factor for {name!r}, which belongs to no parameter of the optimizer")
        self._layer_factors.update(layers)

    @torch.no_grad()
    def _write(self) -> None:
        lrs = scaled_lrs(self._held, self._start, self._layer_factors, self._idle, self.optimizer)
        write_lrs(self.optimizer.param_groups, lrs, self._held)
        for group, held in zip(self.optimizer.param_groups, self._held, strict=True):
            if held.owns_wd:
                group["weight_decay"] = held.wd * held.wd_scale
        self._last_lr = [copied(group["lr"]) for group in self.optimizer.param_groups]

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return time, base values, scales, and the controller's and the observer's state: plain data.

        No tensors; parts whose keys change during a run are one JSON string. The start that a controller
        needs for the distance is in the optimizer's state; a tracking observer's samples are in its own.
        """
        weights = None if self._carried is None else self._carried.weights
        return {
            "last_epoch": self._seen,
            "taken": self._taken,
            "step_count": self._step_count,
            "plan": asdict(self._plan),
            "groups": [held.state_dict() for held in self._held],
            "layer_factors": as_leaf(self._layer_factors),
            "handed_on": as_leaf(self._handed_on),
            "idle": as_leaf(sorted(self._idle)),
            "rms": dict(self._rms),
            "controller": None if self._controller is None else as_leaf(self._controller.state_dict()),
            "weights": as_leaf(None if weights is None else asdict(weights)),
            "observer": None if self._observer is None else untracked(self._observer.state_dict()),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the result of :meth:`state_dict`, and set the optimizer's rates accordingly.

        The plan remains this scheduler's own: if it differs from the saved one (a run that was made longer),
        the lr is recomputed as if it had always applied. Groups that the state lacks keep their base.

        Raises:
            ValueError: if the state has more groups than the optimizer, or something else where a number
                belongs, before anything has changed.
        """
        saved, held = state_dict["groups"], len(self.optimizer.param_groups)
        if len(saved) > held:
            raise ValueError(f"the scheduler's state has {len(saved)} groups, but the optimizer has {held}")
        check_state(state_dict, self._controller)
        self._take_in_groups()
        self.last_epoch = self._seen = int(state_dict["last_epoch"])
        self._taken = int(state_dict["taken"])
        self._step_count = int(state_dict["step_count"])
        then, now = list(state_dict.get("rms", ())), self._observer.start().names if self._observer else ()
        named = functools.partial(with_present_names, before=then, now=now)
        self._layer_factors, self._named = named(from_leaf(state_dict["layer_factors"])), {}
        self._idle = frozenset(named(dict.fromkeys(from_leaf(state_dict.get("idle", "[]")), 1.0)))
        for own in self._held:
            own.epoch = -1
        for own, group in zip(self._held, saved, strict=False):
            own.load_state_dict(group, self._plan, state_dict["plan"] == asdict(self._plan))
        for own, group in zip(self._held, self.optimizer.param_groups, strict=True):
            own.advance(self._plan, self.last_epoch)
            group["initial_lr"] = copied(own.base)
        self.base_lrs = [copied(own.base) for own in self._held]
        if self._controller is not None and state_dict["controller"] is not None:
            if self._start is not None and self._start.names != now:  # torch loaded the optimizer's names
                self._controller.reset()
                self._attach()
            restore(self._controller, named(from_leaf(state_dict["controller"])))
            self._rms = named(state_dict.get("rms", self._rms))
            self._attach()
        self._put_factors(named(from_leaf(state_dict.get("handed_on", "{}"))))
        if self._carried is not None and (weights := from_leaf(state_dict.get("weights", "null"))):
            self._carried.weights = Weights(**weights)
        if self._observer is not None and state_dict["observer"] is not None:
            self._observer.load_state_dict(from_leaf(state_dict["observer"]))
        self._write()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return taken_apart(self, ThermoScheduler, self._own_names, self._controller, self._has_own_observer)


def _count(scheduler: weakref.ref[ThermoScheduler]) -> None:
    own = scheduler()
    if own is not None:
        own._taken += 1
