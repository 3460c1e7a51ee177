"""ThermoAdamW: torch's AdamW with an account of entropy production inside its step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from thermoopt.account import (
    MAX_PENDING,
    ROWS_PER_EMA,
    History,
    Meter,
    PendingSums,
    add_to_meter,
    as_leaf,
    from_leaf,
    layer_names,
)
from thermoopt.account.reading import Reading
from thermoopt.adamw.arguments import averaging_steps, check_arguments, check_materialized
from thermoopt.adamw.backends import choose_backend
from thermoopt.adamw.compiled import Traceable, traced_step
from thermoopt.adamw.control_loop import DEVICE_LAG, ControlLoop, start_of
from thermoopt.adamw.rates import FactorCache, Rates, fresh_thermo, group_rates
from thermoopt.adamw.torch_backend import Backend
from thermoopt.controllers import Controller, Scales
from thermoopt.sinks import SinkQueue
from thermoopt.tensors import PendingTravel, Sharding, capturing, root_mean_squares
from thermoopt.uncompiled import uncompiled

__all__ = ["ThermoAdamW"]


class ThermoAdamW(torch.optim.AdamW):
    r"""AdamW that measures the entropy production of training inside its own step.

    .. math::
        \theta \leftarrow (1-\eta\lambda)\,\theta - \eta\,U,\qquad
        U = \hat m/(\sqrt{\hat v}+\epsilon),\qquad \sigma = \eta\langle g, U\rangle

    With ``controller=None`` it is a pure monitor: on the torch backends parameters and moments are the
    same bits as those of :class:`torch.optim.AdamW` with the same flags. All arguments up to ``fused``
    mean what they mean there.

    Args:
        params: parameters, ``model.named_parameters()``, or groups of either. Names become layer names;
            without names a layer is called ``group{i}.{j}``. Groups may carry a ``name``.
        lr, betas, eps, weight_decay, amsgrad, maximize, foreach, capturable, differentiable, fused: as in
            :class:`torch.optim.AdamW`.
        controller: turns readings into scales; None measures only. :func:`thermoopt.autotune` makes the one
            that needs no lr: ``lr`` then is only the unit that scales are expressed in.
        measure_every: measure every so many steps, from 1; None chooses what the backend does for free
            (every step with ``"native"`` and ``"triton"``, every 10th with ``"torch"``).
        ema_steps: length of the readings' average in optimizer steps, at least 1 (the raw step); None is the
            length that the controller wants, else 50.
        backend: ``"auto"``, ``"torch"`` (torch's own step and a measuring pass before it), ``"native"``
            (one pass on CPU) or ``"triton"`` (one pass on CUDA, not run on a GPU yet). ``"auto"`` takes the
            native kernel for the tensors it can take unless ``fused`` or ``foreach`` is given.
        sinks: what receives readings on the way: those of :mod:`thermoopt.sinks`, a SummaryWriter,
            ``wandb.run``, ``mlflow``, ``trackio``, any object with ``write(reading)``, ``log(dict, step)`` or
            ``log_metrics(dict, step)``. Copies and pickles of the optimizer go without them.
        process_group: a ``torch.distributed`` group whose ranks are to take the same decisions: the readings
            of its first rank go to all. Ranks of DDP hold the same gradients and decide alike without it as
            long as their arithmetic is the same; a law that lives on a reported loss needs it. Copies and
            pickles go without it.

    Raises:
        TypeError, ValueError: torch's own for its arguments, then for those above: the message names the
            argument, its value and what is allowed, and nothing has moved.
        RuntimeError: if the backend asked for is not available; the message says why.

    References:
        Loshchilov and Hutter, arXiv 1711.05101; entropy production as force times flux.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        controller: Controller | None = None,
        measure_every: int | None = None,
        ema_steps: float | None = None,
        backend: str = "auto",
        sinks: Iterable[Any] = (),
        process_group: Any = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        check_arguments(controller, measure_every, ema_steps)
        self._setup(
            controller=controller,
            measure_every=measure_every,
            ema_steps=averaging_steps(ema_steps, controller),
            backend=choose_backend(backend, self.param_groups),
            history=History(),
            process_group=process_group,
        )
        self._sinks = SinkQueue(sinks)
        self._adopt_groups()

    def _setup(
        self,
        controller: Controller | None,
        measure_every: int | None,
        ema_steps: float,
        backend: Backend,
        history: History,
        process_group: Any = None,
    ) -> None:
        self._loop = None if controller is None else ControlLoop(controller, process_group)
        self._measure_every = measure_every
        self._ema_steps = ema_steps
        self._backend = backend
        self._history = history
        self._sinks = SinkQueue(())
        self._pending: deque[PendingSums] = deque()
        self._recorded: deque[Reading] = deque(maxlen=MAX_PENDING)
        self._factors = FactorCache()
        self._factors_set: Mapping[str, float] | None = None
        self._sharding: Sharding | None = None

    # ---------------------------------------------------------------- what users read

    @property
    def reading(self) -> Reading | None:
        """The last completed reading, or None before the first. Waits for sums still on a device."""
        self._collect(wait=True)
        return self._meter.reading

    def newest_reading(self) -> Reading | None:
        """Return the last reading whose sums have arrived: as :attr:`reading`, and waits for nothing."""
        self._collect(wait=False)
        return self._meter.reading

    def late_reading(self, lag: int) -> Reading | None:
        """Return the last recorded reading that is ``lag`` steps old or older, waiting for it if need be.

        Ranks that call it after the same step get the same one, whenever their sums arrive.
        """
        self._collect_before(self.steps + 1 - lag)
        return next((r for r in reversed(self._recorded) if r.step + lag <= self.steps), None)

    @property
    def steps(self) -> int:
        """Optimizer steps taken, as :attr:`Reading.step` counts them."""
        return self._meter.run.step

    @property
    def measure_every(self) -> int:
        """Every so many steps one is measured."""
        return self._measure_every or self._backend.measure_every

    @property
    def record_every(self) -> int:
        """Steps between two readings that go to history, sinks and controller, at least."""
        every = None if self._loop is None else self._loop.controller.every
        return every or math.ceil(self._ema_steps / ROWS_PER_EMA)

    @property
    def ema_steps(self) -> float:
        """Length of the readings' average in optimizer steps."""
        return self._ema_steps

    @property
    def history(self) -> History:
        """The bounded record of readings."""
        self._collect(wait=True)
        return self._history

    @property
    def skipped(self) -> dict[str, int]:
        """Measured steps that moved nothing, by cause (:data:`thermoopt.account.SKIP_CAUSES`)."""
        self._collect(wait=True)
        return dict(self._meter.run.skipped)

    @property
    def sinks(self) -> SinkQueue:
        """The sinks' queue: ``unsent`` and ``dropped`` count readings that a failing sink did not take."""
        self._collect(wait=True)
        return self._sinks

    @property
    def controller(self) -> Controller | None:
        """The controller, whose ``log`` holds every action."""
        return None if self._loop is None else self._loop.controller

    @property
    def backend(self) -> str:
        """The backend in use: ``"torch"``, ``"native"`` or ``"triton"``."""
        return self._backend.name

    def report_loss(self, loss: float | Tensor) -> None:
        """Tell the controller the loss of the coming step; ``step(closure)`` does it by itself.

        Only laws that live on the loss need it. What is not finite counts as not reported.

        Raises:
            TypeError: if it is no number.
        """
        if self._loop is not None:
            self._loop.report_loss(loss)

    def set_layer_factors(self, factors: Mapping[str, float]) -> None:
        """Let layers run at their own rate: ``lr_eff = lr * lr_scale * factor``.

        Args:
            factors: factor by layer name; layers not named keep theirs (1 at the start).

        Raises:
            KeyError: if a name belongs to no parameter.
            ValueError: if a factor is negative or not finite. Nothing has changed then.
        """
        place = {name: i for i, name in enumerate(self._meter.names)}
        for name, factor in factors.items():
            if name not in place:
                raise KeyError(f"layer factor for {name!r}, which belongs to no parameter of this optimizer")
            if not (math.isfinite(factor) and factor >= 0):
                raise ValueError(f"layer factor of {name!r} is {factor!r}; allowed are finite numbers >= 0")
        starts = np.searchsorted(self._meter.group_of, np.arange(len(self.param_groups)))
        for name, factor in factors.items():
            group = self._meter.group_of[place[name]]
            self.param_groups[group]["thermo"]["layer_factors"][place[name] - starts[group]] = factor

    # ---------------------------------------------------------------- the step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, and measure it when it is due.

        Args:
            closure: re-evaluates the model and returns the loss; run before anything is read.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if self._loop is not None and isinstance(loss, (Tensor, float)):
                self._loop.report_loss(loss)
        if torch.compiler.is_compiling():
            traced_step(self._advance(traced=True))
        else:
            self._advance()
        return loss

    @uncompiled
    def _advance(self, traced: bool = False) -> list[Traceable]:
        """The step itself, which ``torch.compile`` leaves as it is: kernels and numpy are not for tracing.

        Returns: with ``traced``, what is still to be stepped where the compiler can see it.
        """
        captured = capturing()
        if not captured:
            self._collect(wait=False)
            self._control()
        rates = [group_rates(i, group, self._factors) for i, group in enumerate(self.param_groups)]
        due = not captured and self._due(rates)
        travel = self._travel(rates, due) if not captured else None
        parts: list[Traceable] = []
        pending = self._backend.step(self, rates, due, parts if traced else None)
        self._meter.run.step += 1
        if pending is not None:
            pending.step, pending.travel = self._meter.run.step, travel
            if self.sharding:
                pending.add_up(self.sharding)
            self._pending.append(pending)
            self._collect(wait=len(self._pending) > MAX_PENDING)
        return parts

    @property
    def sharding(self) -> Sharding:
        """Which ranks the sums of each layer come from."""
        if self._sharding is None:
            self._sharding = Sharding([p for group in self.param_groups for p in group["params"]])
        return self._sharding

    def _due(self, rates: Sequence[Rates]) -> bool:
        """Whether the coming step is measured.

        A step with lr 0 always is: a checkpoint library's dry step must be recognised as such.
        """
        return (self.steps + 1) % self.measure_every == 0 or all(r.maybe_zero for r in rates)

    def _collect(self, wait: bool) -> None:
        """Average in the sums that have arrived; with ``wait``, all that are on the way."""
        while self._pending and (wait or self._pending[0].ready()):
            self._take(self._pending.popleft())

    def _collect_before(self, step: int) -> None:
        """Average in, waiting for them, the sums of all steps before one."""
        while self._pending and self._pending[0].step < step:
            self._take(self._pending.popleft())

    def _travel(self, rates: Sequence[Rates], due: bool) -> PendingTravel | None:
        """Form the sums that the controller named, of the parameters before the step."""
        if self._loop is None or self._loop.probe is None:
            return None
        self._loop.push(self.param_groups, rates, self)
        return self._loop.probe.measure() if due and self._record_due(self._meter.run.step + 1) else None

    def _take(self, pending: PendingSums) -> None:
        cause = pending.skip_cause()
        if cause is None:
            cause = self._meter.update(pending.step, pending.index, *pending.arrays())
        if cause is not None:
            self._meter.skip(cause)
            # a dry step is no step: take back its count, and what a controller learned of a run not begun
            self._meter.run.step -= cause == "dry"
            if cause == "dry" and self._loop is not None and self._meter.run.step == 0:
                self._loop.detach(forget=True)
                self._forget_scales()
        elif self._record_due(pending.step):
            reading = self._meter.reading
            assert reading is not None
            self._meter.run.recorded = pending.step
            self._meter.run.unseen = 1
            self._recorded.append(reading)
            self._history.append(reading)
            if self._loop is not None:
                self._loop.offer(reading, pending.travel, self._sinks)
            self._sinks.write(reading)

    def _record_due(self, step: int) -> bool:
        last = self._meter.run.recorded
        return last == 0 or step - last >= self.record_every

    def _control(self) -> None:
        """Let the controller set the scales of the coming step; it sees each recorded reading once."""
        loop = self._loop
        if loop is None:
            return
        coming = self._meter.run.step + 1
        lag = 0 if all(p.device.type == "cpu" for p in self.param_groups[0]["params"][:1]) else DEVICE_LAG
        self._collect_before(coming - lag)
        if not loop.attached:
            self._attach(loop)
        self._apply(loop.decide(coming, lag, self.param_groups))
        self._meter.run.unseen = int(loop.waiting)

    def _attach(self, loop: ControlLoop) -> None:
        """Tell the controller of the parameters as they were at the start."""
        thermos = [group["thermo"] for group in self.param_groups]
        fresh = [group for group in self.param_groups if (group["thermo"]["start_rms"] < 0).any()]
        found = root_mean_squares([p for group in fresh for p in group["params"]])
        for group, values in zip(fresh, found.split([len(g["params"]) for g in fresh]), strict=True):
            group["thermo"]["start_rms"] = values.clone()
        rms = [x for thermo in thermos for x in thermo["start_rms"].tolist()]
        lr, wd = ([thermo[key] for thermo in thermos] for key in ("start_lr", "start_wd"))
        params = [p for group in self.param_groups for p in group["params"]]
        loop.attach(start_of(self.param_groups, self._meter, rms, lr, wd), params)

    def _forget_scales(self) -> None:
        for group in self.param_groups:
            fresh = fresh_thermo(group)
            for key in ("start_lr", "start_wd"):  # those of construction: a dry step has lr 0
                del fresh[key]
            group["thermo"].update(fresh)

    def _apply(self, scales: Scales) -> None:
        groups = self.param_groups
        lrs, wds = scales.spread(len(groups))
        if scales.layers and scales.layers is not self._factors_set:
            self.set_layer_factors(scales.layers)
            self._factors_set = scales.layers
        for group, lr, wd in zip(groups, lrs, wds, strict=True):
            group["thermo"]["lr_scale"], group["thermo"]["wd_scale"] = lr, wd

    # ---------------------------------------------------------------- groups and state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as torch does; its layers are measured from the next step on.

        Raises:
            ValueError: as torch does, and if a layer name is taken; the group is not added then.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_materialized(group["params"])
        except ValueError:
            self.param_groups.pop()
            raise
        group.setdefault("thermo", fresh_thermo(group))
        names: set[str] = set()
        for i, g in enumerate(self.param_groups):
            for name in layer_names(i, g):
                if name in names:
                    self.param_groups.pop()
                    raise ValueError(f"params holds the name {name!r} twice; names of parameters must differ")
                names.add(name)
        if hasattr(self, "_meter"):
            self._collect(wait=True)
            add_to_meter(self._meter, group)
            self._backend.reset()
            self._sharding = None
            if self._loop is not None:
                self._loop.detach(forget=False)

    def _adopt_groups(self) -> None:
        """Build the meter anew from what the groups hold, after construction, loading or unpickling."""
        self._meter = Meter(self._ema_steps)
        self._pending.clear()
        self._recorded.clear()
        self._backend.reset()
        self._factors_set = self._sharding = None
        snapshots: list[Mapping[str, Any]] = []
        saved_controller = None
        for i, group in enumerate(self.param_groups):
            fresh, saved = fresh_thermo(group), group.get("thermo", {})
            snapshots.append(saved)
            group["thermo"] = {key: saved.get(key, value) for key, value in fresh.items()}
            for key in ("layer_factors", "start_rms"):
                group["thermo"][key] = torch.as_tensor(
                    group["thermo"][key], dtype=torch.float64, device="cpu"
                )
            add_to_meter(self._meter, group)
            self._meter.import_group(i, saved)
            saved_controller = saved.get("controller", saved_controller)
        if self._meter.run.step == 0:
            # state of a plain AdamW: go on counting where it stands
            steps = [s["step"] for s in self.state.values() if isinstance(s, dict) and "step" in s]
            self._meter.run.step = int(max((float(s) for s in steps), default=0))
        if self._loop is not None:
            if saved_controller is not None:
                self._loop.controller.load_state_dict(from_leaf(saved_controller))
            params = [p for group in self.param_groups for p in group["params"]]
            self._loop.import_groups(snapshots, self._meter, params)

    def _snapshots(self) -> list[dict[str, Any]]:
        """What every group carries through a checkpoint: scales, averages, counters, the controller."""
        self._collect(wait=True)
        out: list[dict[str, Any]] = []
        for i, group in enumerate(self.param_groups):
            scales = {k: v.clone() if isinstance(v, Tensor) else v for k, v in group["thermo"].items()}
            out.append({**scales, **self._meter.export_group(i)})
            if self._loop is not None:
                layers = np.flatnonzero(self._meter.group_of == i).tolist()
                out[-1].update(self._loop.export_group(layers, group["params"], int(self._meter.numel.sum())))
        if self._loop is not None and out:
            out[0]["controller"] = as_leaf(self._loop.controller.state_dict())
        return out

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict; every group carries a snapshot of scales and averages as ``thermo``."""
        live = [group["thermo"] for group in self.param_groups]
        snapshots = self._snapshots()
        self._sinks.flush()
        try:
            # torch's state dict refers to what a group holds, and hooks may read and edit it
            for group, snapshot in zip(self.param_groups, snapshots, strict=True):
                group["thermo"] = snapshot
            return super().state_dict()
        finally:
            for group, thermo in zip(self.param_groups, live, strict=True):
                group["thermo"] = thermo

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and deepcopy keep: all but sinks and process group, which are a process's."""
        keep = {
            "controller": self.controller,
            "measure_every": self._measure_every,
            "ema_steps": self._ema_steps,
            "backend": self._backend.requested,
            "history": self._history,
        }
        groups = [
            {**group, "thermo": snapshot}
            for group, snapshot in zip(self.param_groups, self._snapshots(), strict=True)
        ]
        return {**super().__getstate__(), "param_groups": groups, "_thermo_setup": keep}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from pickle, deepcopy or ``load_state_dict``, with or without ``thermo`` in the groups."""
        state = dict(state)
        setup = state.pop("_thermo_setup", None)
        super().__setstate__(state)
        if setup is not None:
            setup = {**setup, "backend": choose_backend(setup["backend"], self.param_groups)}
            self._setup(**setup)
        self._adopt_groups()
        self._history.rewind(self._meter.run.step)
