"""Measuring any torch optimizer around its steps: what is read before, what after, and when."""

from __future__ import annotations

import inspect
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thermoopt.account import MAX_PENDING, ROWS_PER_EMA, History, Meter, PendingSums, add_to_meter
from thermoopt.account.reading import Reading
from thermoopt.adamw import MeasuringPass, Rates, dry_kernel, reading_lag
from thermoopt.observer.displacement import MOMENT_SUMS, Displacement
from thermoopt.sinks import SinkQueue
from thermoopt.tensors import Sharding, capturing, local
from thermoopt.uncompiled import uncompiled

__all__ = [
    "CLOSURE",
    "StepHooks",
    "check_whole_step",
    "closure_of",
    "group_lr",
    "is_dry",
    "when_gradients_are_there",
]

CLOSURE = "closure"
"""One more cause to skip a measured step, beside :data:`thermoopt.account.SKIP_CAUSES`: the optimizer did not
evaluate its closure exactly once, so no one gradient belongs to the step (LBFGS, SAM)."""


HALVE_FROM = 5
"""Measured steps an average must be long for each to read only one half of large tensors, turn by turn. At
ema_steps = 50 and every 10th step measured the halves then weigh 55 to 45 in an average at worst, so that
sums which differ between them by a tenth are off by half a percent."""


class StepHooks:
    """Measures an optimizer in step hooks: a meter, a history, and sums on their way from a device.

    Args:
        optimizer: any torch optimizer.
        names: layer names by parameter, for groups that carry none.
        measure_every: measure every so many steps.
        ema_steps, sinks: as for :class:`~thermoopt.observer.Observer`.
        complete: adds to a reading, before it is recorded, what the hooks do not measure.

    Attributes:
        record_every: steps between two readings that go to history, sinks and controller, at least.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        names: Mapping[Tensor, str],
        measure_every: int,
        ema_steps: float,
        sinks: SinkQueue,
        complete: Callable[[Reading], Reading],
    ) -> None:
        self._optimizer = optimizer
        self._names = names
        self._measure_every = measure_every
        self.record_every = ema_steps / ROWS_PER_EMA
        self._ema_steps = ema_steps
        self._sinks = sinks
        self._complete = complete
        self._history = History()
        self._pending: deque[PendingSums] = deque()
        self._begun: PendingSums | Displacement | str | None = None
        self._begin_anew()
        self._meter.run.step = _steps_taken(optimizer)
        self._handles = (
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
            optimizer.register_load_state_dict_post_hook(lambda _: self._pass.reset()),
        )

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    # ---------------------------------------------------------------- around a step

    @uncompiled
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        self._begun = None
        check_whole_step(optimizer, args, kwargs)
        if closure_of(args, kwargs) is None and is_dry(optimizer):
            self._begun = "dry"
        elif (self._meter.run.step + 1) % self._measure_every == 0 and not capturing():
            self._begun = CLOSURE
            return when_gradients_are_there(args, kwargs, self._read)
        return None

    def _read(self, times: int) -> None:
        self._begun = self._begin() if times == 1 else CLOSURE

    def _begin(self) -> PendingSums | Displacement | str | None:
        """Read what must be read before the step; a string is the cause to skip it, None says nothing."""
        self._follow_groups()
        rates = [
            Rates(group_lr(group), _decoupled_decay(self._optimizer, group), None, True)
            for group in self._optimizer.param_groups
        ]
        if self._by_moments:
            turn = (self._meter.run.step + 1) // self._measure_every % 2
            half = turn if self._ema_steps >= HALVE_FROM * self._measure_every else None
            return self._pass.sums(self._optimizer, rates, half)
        kept = Displacement(self._optimizer, rates)
        if len(kept) or (self._sharding and not all(rate.maybe_zero for rate in rates)):
            return kept  # also of nothing, where other ranks add theirs
        return None if any(rate.maybe_zero for rate in rates) else "no_gradients"

    @uncompiled
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        begun, self._begun = self._begun, None
        self._meter.run.step += begun != "dry"
        if isinstance(begun, str):
            self._meter.skip(begun)
        elif begun is not None:
            if isinstance(begun, Displacement):
                begun = begun.sums(optimizer, self._meter.keep)
            begun.step = self._meter.run.step
            if self._sharding:
                begun.add_up(self._sharding)
            self._pending.append(begun)
            self._collect(wait=len(self._pending) > MAX_PENDING)

    def _collect(self, wait: bool) -> None:
        """Average in the sums that have arrived; with ``wait``, all that are on the way."""
        while self._pending and (wait or self._pending[0].ready()):
            self._take(self._pending.popleft())

    def _take(self, pending: PendingSums) -> None:
        run = self._meter.run
        cause = pending.skip_cause()
        if cause is None:
            cause = self._meter.update(pending.step, pending.index, *pending.arrays())
        if cause is not None:
            self._meter.skip(cause)
            # a dry step is no step: take back its count
            run.step -= cause == "dry"
        elif run.recorded == 0 or pending.step - run.recorded >= self.record_every:
            reading = self._meter.reading
            assert reading is not None
            reading = self._complete(reading)
            run.recorded, run.unseen = pending.step, 1
            self._fresh.append(reading)
            self._history.append(reading)
            if self._sinks:
                self._sinks.write(reading)

    # ---------------------------------------------------------------- groups

    def _begin_anew(self) -> None:
        """Make a meter of the optimizer's layers as they are."""
        self._pending.clear()
        self._pass = MeasuringPass(dry_kernel(self._optimizer.param_groups))
        self._by_moments = _steps_by_moments(self._optimizer)
        self._meter = Meter(self._ema_steps, () if self._by_moments else MOMENT_SUMS)
        self._meter.run.skipped[CLOSURE] = 0
        self._sizes: list[int] = []
        self._fresh: deque[Reading] = deque(maxlen=MAX_PENDING)
        self._follow_groups()

    def _follow_groups(self) -> None:
        """Take in groups that were added; begin anew where layers or the way to measure changed."""
        groups = self._optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        if self._by_moments != _steps_by_moments(self._optimizer) or self._sizes != sizes[: len(self._sizes)]:
            run = self._meter.run
            self._begin_anew()
            run.readings = 0
            self._meter.run = run
        elif len(sizes) > len(self._sizes):
            self._collect(wait=True)
            for group in groups[len(self._sizes) :]:
                add_to_meter(self._meter, group, self._names)
            self._sizes = sizes
            self._sharding = Sharding([p for group in groups for p in group["params"]])

    # ---------------------------------------------------------------- what is read

    @property
    def steps(self) -> int:
        """Optimizer steps taken, as :attr:`Reading.step` counts them."""
        return self._meter.run.step

    @property
    def sinks(self) -> SinkQueue:
        """The sinks' queue."""
        self._collect(wait=True)
        return self._sinks

    @property
    def ema_steps(self) -> float:
        """Length of the readings' average in optimizer steps."""
        return self._ema_steps

    @property
    def measure_every(self) -> int:
        """Every so many steps one is measured."""
        return self._measure_every

    @property
    def reading(self) -> Reading | None:
        """The last completed reading, or None before the first."""
        self._collect(wait=True)
        return self._meter.reading

    def newest_reading(self) -> Reading | None:
        """Return the last reading whose sums have arrived: as :attr:`reading`, and waits for nothing."""
        self._collect(wait=False)
        return self._meter.reading

    @property
    def history(self) -> History:
        """The bounded record of readings."""
        self._collect(wait=True)
        return self._history

    @property
    def skipped(self) -> dict[str, int]:
        """Measured steps that moved nothing, by cause."""
        self._collect(wait=True)
        return dict(self._meter.run.skipped)

    def fresh_reading(self) -> Reading | None:
        """Return the newest recorded reading if it was not handed over yet.

        Where sums come from a device or from other ranks it is one of a step before the last
        (:data:`thermoopt.adamw.DEVICE_LAG`), and that is waited for: then runs repeat and ranks decide alike.
        """
        lag = reading_lag(self._optimizer, self._sharding)
        while self._pending and self._pending[0].step + lag <= self.steps:
            self._take(self._pending.popleft())
        reading = None
        while self._fresh and self._fresh[0].step + lag <= self.steps:
            reading = self._fresh.popleft()
        self._meter.run.unseen = int(bool(self._fresh))
        return reading if lag or reading is None else self._meter.reading  # which may be newer still

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return averages and counters of every group."""
        self._follow_groups()
        self._collect(wait=True)
        self._sinks.flush()
        groups = [self._meter.export_group(i) for i in range(len(self._sizes))]
        return {"by_moments": self._by_moments, "groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave.

        Averages of an optimizer that was measured in another way start afresh, with a warning.

        Raises:
            ValueError: if the state holds more groups than the optimizer; nothing has changed then.
        """
        saved, held = state["groups"], len(self._optimizer.param_groups)
        if len(saved) > held:
            raise ValueError(f"the observer's state is of {len(saved)} groups, the optimizer holds {held}")
        self._begin_anew()
        if state["by_moments"] != self._by_moments:
            warnings.warn(
                "the observer's state is of an optimizer measured in another way: its averages start afresh",
                RuntimeWarning,
                stacklevel=3,
            )
            saved = [{k: v for k, v in group.items() if k not in ("meter", "readings")} for group in saved]
        for i, group in enumerate(saved):
            self._meter.import_group(i, group)
        if self._meter.run.unseen and self._meter.reading is not None:
            self._fresh.append(self._meter.reading)
        self._history.rewind(self._meter.run.step)


def closure_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return the closure of a step from what its hooks are handed: the optimizer comes first."""
    return args[1] if len(args) > 1 else kwargs.get("closure")


def check_whole_step(optimizer: Optimizer, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a step of one parameter: as many of them as there are parameters make an iteration.

    Raises:
        RuntimeError: if the step was called with one of the parameters.
    """
    given = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, Tensor)]
    if given and any(x is p for x in given for group in optimizer.param_groups for p in group["params"]):
        raise RuntimeError(
            f"step() must be called for all parameters at once, this {type(optimizer).__name__} was called "
            "for one (gradient release): iterations cannot be counted or measured then. Remove the observer "
            "or scheduler, or train without gradient release"
        )


def when_gradients_are_there(
    args: tuple[Any, ...], kwargs: dict[str, Any], read: Callable[[int], None]
) -> tuple[Any, Any] | None:
    """Call ``read`` when a step's gradients are there: at once, or each time its closure has run.

    Args:
        args, kwargs: as a step pre-hook is handed them, the optimizer first.
        read: told how often the step's gradients have been formed so far, from 1.

    Returns:
        What the hook is to return: None, or the arguments with the closure wrapped.
    """
    closure = closure_of(args, kwargs)
    if closure is None:
        read(1)
        return None
    times = 0

    def measured() -> Any:
        nonlocal times
        out = closure()
        times += 1
        read(times)
        return out

    if len(args) > 1:
        return (args[0], measured, *args[2:]), kwargs
    return args, {**kwargs, "closure": measured}


def group_lr(group: Mapping[str, Any]) -> float | Tensor:
    """Learning rate of a group; 1 where it has none (the displacement itself then is the update)."""
    lr = group.get("lr")
    return 1.0 if lr is None else lr


def is_dry(optimizer: Optimizer) -> bool:
    """Whether the coming step is none: every lr 0 and every gradient 0, as checkpoint libraries take one.

    A learning rate on a device is not waited for and counts as not 0.
    """
    for group in optimizer.param_groups:
        lr = group_lr(group)
        if (isinstance(lr, Tensor) and lr.device.type != "cpu") or float(lr) != 0.0:
            return False
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in params if p.grad is not None]
    # of every gradient: to read one may take all ranks
    there, moving = bool(grads), any([g.is_sparse or bool(local(g).any()) for g in grads])
    sharding = Sharding(params)
    if sharding:  # a rank whose shards are empty or still learns of the others
        flags = torch.tensor([[float(there), float(moving)]], dtype=torch.float64, device="cpu").expand(
            len(params), 2
        )
        there, moving = sharding.add(flags.clone()).any(dim=0).tolist()
    return there and not moving


def _steps_taken(optimizer: Optimizer) -> int:
    """Steps that an optimizer under way has taken, as far as its state counts them."""
    counts = [state.get("step", 0) for state in optimizer.state.values() if isinstance(state, dict)]
    return int(max((float(n) for n in counts if isinstance(n, (int, float, Tensor))), default=0))


def _steps_by_moments(optimizer: Optimizer) -> bool:
    """Whether the step is torch's own Adam or AdamW and no weight decay goes into its gradient."""
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        return False
    steps = (torch.optim.Adam.step, torch.optim.AdamW.step)
    if inspect.unwrap(type(optimizer).step) not in [inspect.unwrap(step) for step in steps]:
        return False
    return all(_is_decoupled(optimizer, g) or g["weight_decay"] == 0 for g in optimizer.param_groups)


def _is_decoupled(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    return isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay", False))


def _decoupled_decay(optimizer: Optimizer, group: Mapping[str, Any]) -> float:
    return float(group.get("weight_decay") or 0.0) if _is_decoupled(optimizer, group) else 0.0
