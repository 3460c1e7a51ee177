"""ThermoAdamW: torch's AdamW with an account of entropy production inside its step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from thermoopt.account import History, Ledger, if_alive, is_measured
from thermoopt.adamw.arguments import averaging_steps, check_arguments, check_materialized, check_saved
from thermoopt.adamw.backends import choose_backend
from thermoopt.adamw.compiled import (
    Traceable,
    check_capturable,
    check_controllable,
    check_replayable,
    traced_step,
)
from thermoopt.adamw.control_loop import ControlLoop, LoopView, start_of
from thermoopt.adamw.rates import RatesCache
from thermoopt.adamw.state import (
    KEY,
    GroupState,
    Layout,
    RunStart,
    apply_scales,
    carried,
    export_groups,
    import_groups,
    set_layer_factors,
    start_norms,
)
from thermoopt.adamw.torch_backend import Backend
from thermoopt.controllers import Controller
from thermoopt.kernels import Addresses
from thermoopt.sinks import SinkQueue
from thermoopt.tensors import PendingTravel, capturing
from thermoopt.uncompiled import uncompiled

__all__ = ["ThermoAdamW"]


class ThermoAdamW(LoopView, torch.optim.AdamW):
    r"""AdamW that measures the entropy production of training inside its own step.

    .. math::
        \theta \leftarrow (1-\eta\lambda)\,\theta - \eta\,U,\qquad
        U = \hat m/(\sqrt{\hat v}+\epsilon),\qquad \sigma = \eta\langle g, U\rangle

    With ``controller=None`` it is a pure monitor: with backend ``"torch"``, parameters and moments are the
    same bits as those of :class:`torch.optim.AdamW` with the same flags. All arguments up to ``fused``
    mean what they mean there.

    Args:
        params: parameters, ``model.named_parameters()``, or groups of either. Names become layer names;
            without names a layer is called ``group{i}.{j}``. Groups may have a ``name``, which is put in
            front of a layer's name if an earlier group has a layer of that name. What DDP, FSDP,
            ``torch.compile`` and activation checkpointing add to names is removed.
        lr, betas, eps, weight_decay, amsgrad, maximize, foreach, capturable, differentiable, fused: as in
            :class:`torch.optim.AdamW`.
        controller: turns readings into scales; None only measures. :func:`thermoopt.autotune` makes one that
            needs no lr: ``lr`` is then only the unit in which scales are expressed.
        measure_every: measure one step in this many (:func:`~thermoopt.account.measured_steps`), >= 1; None
            uses what costs little: every step with ``"native"`` and ``"triton"``, one in 10 with ``"torch"``.
        ema_steps: length of the readings' average in optimizer steps, >= 1 (1 is the raw step); None uses
            the length that the controller wants, or 50.
        backend: ``"auto"``, ``"torch"`` (torch's own step and a measuring pass before it), ``"native"``
            (one pass on CPU) or ``"triton"`` (one pass on CUDA, compute capability 8.0 or higher). ``"auto"``
            uses the kernel of the parameters' device for the tensors it can take, unless ``fused`` or
            ``foreach`` is given.
        sinks: objects that receive readings during the run: those of :mod:`thermoopt.sinks`, a SummaryWriter,
            ``wandb.run``, ``mlflow``, ``trackio``, any object with ``write(reading)``, ``log(dict, step)`` or
            ``log_metrics(dict, step)``, any function of ``(dict, step=)``. Copies and pickles of the
            optimizer have no sinks.
        process_group: a ``torch.distributed`` group whose ranks must make the same decisions: all get the
            readings of its first rank. DDP ranks hold the same gradients and decide alike without it as long
            as their arithmetic is the same; a law that uses a reported loss needs it. Copies have none.

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
        check_arguments(controller, measure_every, ema_steps, self.param_groups)
        self._setup(
            controller=controller,
            measure_every=measure_every,
            ema_steps=averaging_steps(ema_steps, controller),
            backend=choose_backend(backend, self.param_groups),
            history=History(),
            process_group=process_group,
            sinks=sinks,
        )
        self._adopt_groups()

    def _setup(
        self,
        controller: Controller | None,
        measure_every: int | None,
        ema_steps: float,
        backend: Backend,
        history: History,
        process_group: Any = None,
        sinks: Iterable[Any] = (),
    ) -> None:
        stand = if_alive(self.stand)
        self._loop = None if controller is None else ControlLoop(controller, stand, process_group)
        self._measure_every, self._backend = measure_every, backend
        self._sinks = SinkQueue(sinks)
        self._ledger = Ledger(
            ema_steps,
            self._sinks,
            record_every=None if controller is None else controller.every,
            history=history,
            on_record=None if self._loop is None else if_alive(self._offer),
            on_unbegun=None if self._loop is None else if_alive(self._unbegin),
            on_missed=None if self._loop is None else self._loop.missed,
        )
        self._factors = RatesCache()
        self._factors_set: Mapping[str, float] | None = None

    def set_layer_factors(self, factors: Mapping[str, float]) -> None:
        """Set learning-rate factors of single layers: ``lr_eff = lr * lr_scale * factor``.

        Args:
            factors: factor by layer name; layers not named keep theirs, initially 1.

        Raises:
            KeyError: if a name belongs to no parameter.
            ValueError: if a factor is negative or not finite. Nothing has changed then.
        """
        self.follow_groups()
        set_layer_factors(self.param_groups, self._ledger.meter.names, factors)

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
            self._start.take_loss(loss, self._loop)
        if torch.compiler.is_compiling():
            traced_step(self._advance(traced=True))
        else:
            self._advance()
        return loss

    @uncompiled
    def _advance(self, traced: bool = False) -> list[Traceable]:
        """Take the step itself, which ``torch.compile`` does not trace: it runs kernels and numpy.

        Returns:
            With ``traced``, what is left to be stepped where the compiler can see it.
        """
        self._follow_groups()
        captured = capturing()
        if captured:
            check_capturable(self)
            check_controllable(self.backend, self.controller)
        else:
            self._ledger.begin()
            self._start.begin(self.param_groups)
            self._control()
        rates = self._rates()
        dry = all(rate.maybe_zero for rate in rates)
        # a checkpoint library's dry step, of lr 0, must be recognised as such
        due = captured or dry or is_measured(self._ledger.run.step + 1, self.measure_every)
        due = due or self._backend.is_warming(self.param_groups)
        parts: list[Traceable] = []
        travel: PendingTravel | None = None

        def before(at: Addresses | None = None) -> None:
            nonlocal travel
            travel = self._travel(rates, due and not captured, at)

        done = self._backend.step(self, rates, self._ledger, due, before, parts if traced else None)
        self._ledger.enter(done, travel, maybe_dry=dry)
        return parts

    def before_replay(self) -> None:
        """Prepare a replay of a CUDA graph that captured :meth:`step`; call it before each, on its stream.

        What Python does in a step is not in the graph. This call accounts for the last replay (recording its
        reading if one is due) and lets the controller set the rates of the next one, as :meth:`step` does.
        The rates are written where the graph reads them, so a replay uses the rates of an eager step.
        Without the call, averages and the sums of a law's forces are still kept on the device and
        :attr:`reading` stays up to date, but a replay uses the previous rates; a warning with the next
        reading says so.

        Raises:
            RuntimeError: if no step was captured.
        """
        check_replayable(self._ledger.replays)
        self._ledger.begin()
        self._control()
        rates = self._rates()
        self._ledger.expect_replay(self._put_travel(rates))
        self._backend.put_rates(rates)

    def _control(self) -> None:
        """Have the controller set the scales of the coming step; it sees each recorded reading once."""
        loop, ledger, groups = self._loop, self._ledger, self.param_groups
        if loop is None:
            return
        coming = ledger.run.step + 1
        ledger.collect_before(coming - ledger.lag)
        if not loop.attached:
            loop.attach(start_of(groups, ledger.meter, *start_norms(groups)), self._params())
        scales = loop.decide(coming, ledger.lag, groups)
        if scales.layers and scales.layers is not self._factors_set:
            self.set_layer_factors({n: f for n, f in scales.layers.items() if n not in self._layout.gone})
            self._factors_set = scales.layers
        apply_scales(groups, scales)
        ledger.run.unseen = int(loop.waiting)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group as torch does; its layers are measured from the next step on.

        Raises:
            ValueError: as torch does, and for lazy parameters; the group is not added then.
        """
        if hasattr(self, "_ledger"):
            self.follow_groups()
        super().add_param_group(param_group)
        try:
            check_materialized(self.param_groups[-1]["params"])
        except ValueError:
            self.param_groups.pop()
            raise
        GroupState.adopt(self.param_groups[-1])
        if hasattr(self, "_ledger"):
            self._ledger.add_group(self.param_groups[-1])
            self._ledger.follow(self._params())
            self._layout.remember(self.param_groups)
            self._backend.reset()
            if self._loop is not None:
                self._loop.detach(forget=False)

    @uncompiled
    def follow_groups(self) -> None:
        """Follow edits made to ``param_groups`` by hand, as every step does; warn of what changed."""
        self._follow_groups()

    def _follow_groups(self) -> None:
        """The same within a step, which is uncompiled already."""
        if (edit := self._layout.follow(self.param_groups, self._ledger)) is None:
            return
        if edit == "foreign":
            return self._adopt_groups()
        self._backend.reset()
        self._factors, self._factors_set = RatesCache(), None
        if self._loop is not None:
            self._loop.follow(drop=edit != "exchange")

    def _adopt_groups(self) -> None:
        """Start the ledger from what the groups hold, after construction, loading or unpickling."""
        ledger = self._ledger
        ledger.reset()
        self._backend.reset()
        self._factors_set = None
        saved = [GroupState.adopt(group) for group in self.param_groups]
        for group in self.param_groups:
            ledger.add_group(group)
        ledger.follow(self._params())
        self._layout = Layout(self.param_groups)
        import_groups(saved, ledger, self._loop, self._params(), self.state)
        self._start = RunStart(ledger, self._sinks, self.param_groups, self.controller)

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict; its groups also hold scales and averages, as ``thermo``."""
        self.follow_groups()
        snapshots = export_groups(self.param_groups, self._ledger, self._loop)
        self._sinks.flush()
        with carried(self.param_groups, snapshots, self.state):
            return super().state_dict()

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and deepcopy keep, all but sinks and process group; its tensors outlive it."""
        self.follow_groups()
        snapshots = self._handed_over = export_groups(self.param_groups, self._ledger, self._loop)
        groups = [{**group, KEY: held} for group, held in zip(self.param_groups, snapshots, strict=True)]
        keep = {
            "controller": self.controller,
            "measure_every": self._measure_every,
            "ema_steps": self.ema_steps,
            "backend": self._backend.requested,
            "history": self._ledger.history,
        }
        return {**super().__getstate__(), "param_groups": groups, "_thermo_setup": keep}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from pickle, deepcopy or ``load_state_dict``, with or without ``thermo`` in the groups."""
        state = dict(state)
        setup = state.pop("_thermo_setup", None)
        if setup is None:
            check_saved(self.param_groups, state["param_groups"], KEY, self.controller)
        super().__setstate__(state)
        if setup is not None:
            setup = {**setup, "backend": choose_backend(setup["backend"], self.param_groups)}
            self._setup(**setup)
        self._adopt_groups()
        self._ledger.rewind()
