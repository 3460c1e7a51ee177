"""ThermoScheduler: a shape over the run for any torch optimizer, and a controller on top of it."""

from __future__ import annotations

import functools
import math
import numbers
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from thermoopt.account import as_leaf, as_loss, from_leaf
from thermoopt.account.reading import Reading
from thermoopt.adamw import EMA_STEPS, ThermoAdamW, check_hookable
from thermoopt.controllers import Controller, Scales, Start, check_claim, claim
from thermoopt.observer import LOG_EVERY, CarriedTravel, Observer, closure_of, is_dry
from thermoopt.scheduler.arguments import check_control, check_lr
from thermoopt.scheduler.plan import GroupSchedule, SchedulePlan, copied, geometric_mean, plain
from thermoopt.uncompiled import uncompiled

__all__ = ["ThermoScheduler"]


def _observer_first(init: Callable[..., None]) -> Callable[..., None]:
    """Let an observer stand in front of the optimizer: ``ThermoScheduler(observer, optimizer, ...)``."""

    @functools.wraps(init)
    def wrapper(self: ThermoScheduler, *args: Any, **kwargs: Any) -> None:
        if args and isinstance(args[0], Observer):
            init(self, *args[1:], observer=args[0], **kwargs)
        else:
            init(self, *args, **kwargs)

    return wrapper


class ThermoScheduler(LRScheduler):
    r"""Learning-rate schedule with warm-up for any torch optimizer, with or without a controller.

    In step n + 1, n being the optimizer steps taken,

    .. math::
        \eta = \eta_{base}\, s(n)\, \mathrm{lr\_scale},\qquad \lambda = \lambda_{base}\, \mathrm{wd\_scale}

    *Shape.* Warm-up takes s from 1/w to 1 in w steps; then it is ``"constant"``, ``"linear"`` or
    ``"cosine"``, ``"wsd"`` (constant, and a last fifth of 1 - sqrt), all down to ``eta_min``, or
    ``"inverse_time"``, 1/(1 + rate t) with t = n - w, towards it
    (:func:`thermoopt.controllers.cooling.cooling_factor`). Without a controller the values are torch's own to
    the last bit: LinearLR, CosineAnnealingLR, LambdaLR, joined by SequentialLR. After ``total_steps`` the lr
    stays where the shape ended. A group whose lr is not above ``eta_min`` keeps it.

    *Time* is the optimizer's: :meth:`step` called several times between two optimizer steps changes nothing,
    called too seldom it catches up. A step that a GradScaler holds back does not count, unless the optimizer
    is fused (torch calls its step all the same). A checkpoint library's dry step does not count.

    *Ownership.* lr, and weight decay once a controller has asked for a wd factor other than 1, are always
    formed from the base values (``initial_lr``; the decay at construction), so a value written from outside
    lasts until the next :meth:`step`. An lr that is a Tensor stays one. A group added in mid-run has the
    lr it was added with as its base, and follows the shape from the next :meth:`step` on.

    *Controller.* Once an optimizer step it sees the newest reading of an
    :class:`~thermoopt.observer.Observer` and gives the scales. Layer factors go to a ThermoAdamW as they are;
    for any other optimizer, which has one lr a group, their geometric mean over the group, weighted by
    elements, is a factor on the group's lr (a thermostat's rate D then moves the group by D times that mean
    of its layers' units): with one layer a group (one group a parameter) it is each layer's own. Where the
    size of an optimizer's update is not known beforehand (all but Adam and AdamW) a law of absolute rates, as
    in :func:`thermoopt.autotune`, leaves the lr as given until the first reading.

    *Distance.* For a law that lives on the distance from the start (autotune's) a sample of the parameters
    as they were before the first step, one element in 17 (all up to 16,384), is kept in the optimizer's
    groups as ``"thermo_travel"``, as torch keeps ``initial_lr``: ``optimizer.state_dict()`` carries it, and
    the two states may be loaded in either order. With an optimizer's state that holds none, the distance
    counts from the parameters as they are at the next step, and a warning says so. The layers' own units are
    those at construction: load pre-trained weights before.

    Args:
        optimizer: any torch optimizer.
        total_steps: length of the run in optimizer steps, from 1; None with ``"constant"`` and
            ``"inverse_time"`` only.
        warmup_steps: steps of linear warm-up, 0 to total_steps.
        shape: see above.
        controller: turns readings into scales; None is the plain schedule, and measures nothing.
        eta_min: lr at the end of the shape, in units of lr, from 0.
        rate: dimensionless decay a step for ``"inverse_time"``, curvature times initial lr, > 0.
        observer: measures for the controller; it may also stand before the optimizer, as first argument.
            None makes one, with averages as long as the controller wants them.
        last_epoch: as in torch: -1, or the number of optimizer steps taken less one where groups hold an
            ``initial_lr``.

    Raises:
        TypeError, ValueError: for arguments that are not what they should be; the message names the
            argument, its value and what is allowed. A controller that cools is refused with a shape other
            than ``"constant"`` (the two would multiply), one of absolute rates for an optimizer that finds
            its own step size (Prodigy, D-Adaptation), and any for a ThermoAdamW that has one of its own.
            Nothing has changed then.
        KeyError: torch's, for ``last_epoch`` from 0 without ``initial_lr``.

    References:
        linear to zero: arXiv 2502.15938; 1 - sqrt: arXiv 2405.18392; 1/t: arXiv 2505.10559.
    """

    @_observer_first
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
        self._controller = controller
        self._observer = observer
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
        self._start: Start | None = None
        self._rms: dict[str, float] = {}
        self._layer_factors: dict[str, float] = {}
        self._named: Mapping[str, float] = {}
        self.last_epoch = last_epoch
        self._taken = last_epoch + 1
        weakref.finalize(self, optimizer.register_step_pre_hook(_counting(weakref.ref(self))).remove)
        self._advance()

    # ---------------------------------------------------------------- torch's interface

    def step(self, loss: float | Tensor | Reading | None = None) -> None:
        """Set the rates of the coming optimizer step: call it after ``optimizer.step()``.

        Args:
            loss: reported to the observer if there is one, without waiting for a device; NaN and infinity
                are counted there and go no further. A :class:`~thermoopt.account.Reading` (what
                ``observer.step()`` returned) is taken and not needed.

        Raises:
            TypeError: for a whole number: time is the optimizer's, and an epoch is not taken.
            TypeError, ValueError: for any other thing that is no loss. Nothing has changed then.
        """
        if not self._begun:  # torch's constructor takes a first step of its own
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
        if self._step_count == 1 and self._taken == self.last_epoch:
            warnings.warn(
                "Detected call of `lr_scheduler.step()` before `optimizer.step()`. Call them in the opposite "
                "order: time is counted in optimizer steps, so until the first this does nothing.",
                UserWarning,
                stacklevel=2,
            )
        self._step_count += 1
        self._advance()

    def get_lr(self) -> list[float | Tensor]:
        """Return the lr of each group at the present time, with the controller's scales."""
        return [
            held.lr * (held.lr_scale * factor)
            for held, factor in zip(self._held, self._group_factors(), strict=True)
        ]

    @property
    def controller(self) -> Controller | None:
        """The controller, or None."""
        return self._controller

    @property
    def observer(self) -> Observer | None:
        """What measures for the controller, or None."""
        return self._observer

    # ---------------------------------------------------------------- the schedule and the controller

    def _advance(self) -> None:
        """Bring schedule and controller up to the optimizer's time and write the rates."""
        self._take_in_groups()
        for epoch in range(self.last_epoch + 1, self._taken + 1):
            if self._controller is not None and self._observer is not None:
                check_claim(self._controller, self)
                reading = self._observer.fresh_reading() if epoch == self._taken else None
                with np.errstate(all="ignore"):  # a law may add up what a diverging run reads
                    scales = self._controller.update(reading, epoch + 1)
                self._apply(scales)
        self.last_epoch = self._taken
        for held in self._held:
            held.advance(self._plan, self.last_epoch)
        self._write()

    def _take_in_groups(self) -> None:
        groups = self.optimizer.param_groups
        if len(groups) == len(self._held):
            return
        for group in groups[len(self._held) :]:
            group.setdefault("initial_lr", copied(group["lr"]))
            base, wd = copied(group["initial_lr"]), float(group.get("weight_decay") or 0.0)
            self._held.append(GroupSchedule(base, wd, self._plan.floor(base)))
        self.base_lrs = [copied(held.base) for held in self._held]
        self._attach()

    def _attach(self) -> None:
        """Tell the controller of the parameters as they were when they joined."""
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
        if scales.layers is self._named:
            pass  # the same mapping again says nothing new
        elif isinstance(self.optimizer, ThermoAdamW):
            self.optimizer.set_layer_factors(scales.layers)
        else:
            assert self._start is not None
            for name in scales.layers:
                if name not in self._start.names:
                    raise KeyError(
                        f"layer factor for {name!r}, which belongs to no parameter of the optimizer"
                    )
            self._layer_factors.update(scales.layers)
        self._named = scales.layers
        for held, lr, wd in zip(self._held, lrs, wds, strict=True):
            held.lr_scale, held.wd_scale = lr, wd
            held.owns_wd |= wd != 1.0

    def _group_factors(self) -> list[float]:
        """Layer factors of each group as one, their geometric mean weighted by elements."""
        if not self._layer_factors or self._start is None:
            return [1.0] * len(self._held)
        members: list[list[tuple[int, float]]] = [[] for _ in self._held]
        for name, group, numel in zip(
            self._start.names, self._start.group_of, self._start.numel, strict=True
        ):
            members[group].append((numel, self._layer_factors.get(name, 1.0)))
        return [geometric_mean(pairs) for pairs in members]

    @torch.no_grad()
    def _write(self) -> None:
        for group, held, lr in zip(self.optimizer.param_groups, self._held, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(torch.as_tensor(lr, device=group["lr"].device))
            else:
                group["lr"] = float(lr)
            if held.owns_wd:
                group["weight_decay"] = held.wd * held.wd_scale
        self._last_lr = [copied(group["lr"]) for group in self.optimizer.param_groups]

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return time, base values, scales, and the controller's and the observer's state: plain data.

        Numbers, strings, lists and dicts; no tensor. What has other keys in the course of a run is one JSON
        string (:mod:`thermoopt.account.json_state`). What a controller that needs the distance from the
        start adds is in the optimizer's state (see above). The samples of an observer that tracks are not in
        it: save the observer's own state, too.
        """
        return {
            "last_epoch": self.last_epoch,
            "taken": self._taken,
            "step_count": self._step_count,
            "plan": asdict(self._plan),
            "groups": [held.state_dict() for held in self._held],
            "layer_factors": as_leaf(self._layer_factors),
            "rms": dict(self._rms),
            "controller": None if self._controller is None else as_leaf(self._controller.state_dict()),
            "observer": None
            if self._observer is None
            else as_leaf(plain(_untracked(self._observer.state_dict()))),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave, and set the optimizer's rates accordingly.

        The plan is this scheduler's own: where it differs from the saved one (a run that was made longer),
        the lr is formed anew as if it had always held. Groups that the state does not know keep their base.

        Raises:
            ValueError: if the state holds more groups than the optimizer; nothing has changed then.
        """
        saved, held = state_dict["groups"], len(self.optimizer.param_groups)
        if len(saved) > held:
            raise ValueError(f"the scheduler's state is of {len(saved)} groups, the optimizer holds {held}")
        self._take_in_groups()
        self.last_epoch, self._taken = int(state_dict["last_epoch"]), int(state_dict["taken"])
        self._step_count = int(state_dict["step_count"])
        self._layer_factors, self._named = dict(from_leaf(state_dict["layer_factors"])), {}
        for own in self._held:
            own.epoch = -1
        for own, group in zip(self._held, saved, strict=False):
            own.load_state_dict(group, self._plan, state_dict["plan"] == asdict(self._plan))
        for own, group in zip(self._held, self.optimizer.param_groups, strict=True):
            own.advance(self._plan, self.last_epoch)
            group["initial_lr"] = copied(own.base)
        self.base_lrs = [copied(own.base) for own in self._held]
        if self._controller is not None and state_dict["controller"] is not None:
            self._controller.load_state_dict(from_leaf(state_dict["controller"]))
            self._rms.update(state_dict.get("rms", {}))
            self._attach()
        if self._observer is not None and state_dict["observer"] is not None:
            self._observer.load_state_dict(from_leaf(state_dict["observer"]))
        self._write()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a ThermoScheduler cannot be copied or pickled: it counts its optimizer's steps by a hook. "
            "Make a new one and hand over state_dict()"
        )


def _counting(scheduler: weakref.ref[ThermoScheduler]) -> Callable[[Optimizer, Any, Any], None]:
    """Count the optimizer's steps for a scheduler, for as long as there is one."""

    @uncompiled
    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        own = scheduler()
        if own is not None and (closure_of(args, kwargs) is not None or not is_dry(optimizer)):
            own._taken += 1

    return hook


def _untracked(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != "tracked"}
