"""Measures any torch optimizer around its steps: what is read before, what after, and when."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thermoopt.account import Done, Ledger, LedgerView, follow_edit, is_measured, measured_steps
from thermoopt.account.reading import Reading
from thermoopt.adamw import MeasuringPass, Rates, dry_kernel
from thermoopt.observer.displacement import MOMENT_SUMS, Displacement
from thermoopt.observer.whole_steps import on_whole_steps
from thermoopt.sinks import SinkQueue
from thermoopt.tensors import Sharding, capturing, local, same_members, see_parts
from thermoopt.traits import decoupled_decay, effective_lr, found_factor, group_lr, steps_by_moments

__all__ = [
    "CLOSURE",
    "StepHooks",
    "check_whole_step",
    "closure_of",
    "is_dry",
    "when_gradients_are_there",
]

CLOSURE = "closure"
"""One more cause to skip a measured step, besides :data:`thermoopt.account.SKIP_CAUSES`: the optimizer did
not evaluate its closure exactly once, or moved the weights first, so that the step has no single gradient
(LBFGS, SAM)."""


LR_ZERO = "lr_zero"
"""Another: the lr of every group that has gradients is 0, and a displacement of 0 does not reveal U."""

HALVE_FROM = 5
"""Number of measured steps that an average must span before each reads only one half of large tensors, in
turns. At ema_steps = 50 and one step in 10 measured, the halves then weigh 55 to 45 in an average at worst,
so that sums which differ between the halves by a tenth are off by half a percent."""


class StepHooks(LedgerView):
    """Measures an optimizer in step hooks and keeps a ledger.

    Args:
        optimizer: any torch optimizer.
        names: layer names by parameter, for groups that carry none.
        measure_every: measure one step in this many.
        ema_steps, sinks: as for :class:`~thermoopt.observer.Observer`.
        complete: adds to a reading, before it is recorded, what the hooks do not measure.
    """

    is_own = False
    begun_at: int | None
    _sinks: SinkQueue

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
        self._sinks = sinks
        self._serves = False
        self._begun: Done | Displacement = None
        self.sparse: set[str] = set()
        self._by_moments = steps_by_moments(optimizer)
        self._ledger = Ledger(ema_steps, sinks, complete=complete, unavailable=self._unavailable())
        self._begin()
        self._ledger.run.step = self.begun_at = _steps_taken(optimizer)
        self._handles = (
            optimizer.register_step_pre_hook(on_whole_steps(self._before)),
            optimizer.register_step_post_hook(on_whole_steps(self._after)),
            optimizer.register_load_state_dict_post_hook(lambda _: self._pass.reset()),
        )

    def report_loss(self, loss: object) -> None:
        """Do nothing: readings come with the loss."""

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    # ---------------------------------------------------------------- around a step

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        self._begun = None
        check_whole_step(optimizer, args, kwargs)
        if self._ledger.run.step == self.begun_at:
            see_parts([p for group in optimizer.param_groups for p in group["params"]], self._serves)
        closure = closure_of(args, kwargs)
        captured = capturing()
        if closure is None and not captured and is_dry(optimizer):
            self._begun = "dry"
        elif self._by_moments if captured else is_measured(self._ledger.run.step + 1, self._measure_every):
            self._begun = CLOSURE
            return when_gradients_are_there(args, kwargs, lambda times: self._read(times, closure is None))
        return None

    def _read(self, times: int, final: bool) -> None:
        self._begun = self._measure(final) if times == 1 else CLOSURE

    def _measure(self, final: bool) -> Done | Displacement:
        """Read what must be read before the step.

        Args:
            final: no closure can still reveal that these gradients are not the step's.
        """
        self.follow_groups()
        rates = []
        for group in self._optimizer.param_groups:
            lr = effective_lr(group, found_factor(self._optimizer, group))
            rates.append(Rates(lr, decoupled_decay(self._optimizer, group), None, True, lr))
        ledger, every = self._ledger, self._measure_every
        if self._by_moments:
            turn = measured_steps(ledger.run.step + 1, every) % 2
            half = turn if ledger.ema_steps >= HALVE_FROM * every else None
            return self._pass.sums(self._optimizer, rates, ledger, half, average=final)
        kept = Displacement(self._optimizer, rates)
        self._tell_of_sparse(kept.sparse)
        if len(kept) or (ledger.sharding and not all(rate.maybe_zero for rate in rates)):
            return kept  # even if empty: other ranks may add theirs
        return LR_ZERO if any(rate.maybe_zero for rate in rates) else "no_gradients"

    def _tell_of_sparse(self, layers: Sequence[int]) -> None:
        """Warn once of layers whose gradients are sparse."""
        names = [name for name in (self._ledger.meter.names[i] for i in layers) if name not in self.sparse]
        if names:
            self.sparse.update(names)
            warnings.warn(
                "layers with sparse gradients are not measured, and missing from readings and totals: "
                f"{', '.join(names)}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        begun, self._begun = self._begun, None
        if isinstance(begun, Displacement):
            begun = begun.sums(optimizer, self._ledger.meter.keep)
        self._ledger.enter(begun)

    # ---------------------------------------------------------------- groups

    def _unavailable(self) -> frozenset[Any]:
        return frozenset() if self._by_moments else MOMENT_SUMS

    def _begin(self) -> None:
        """Add the optimizer's present layers to an empty ledger."""
        self._pass = MeasuringPass(dry_kernel(self._optimizer.param_groups))
        for cause in (CLOSURE, LR_ZERO):
            self._ledger.meter.run.skipped.setdefault(cause, 0)
        self._members: list[list[Tensor]] = []
        self.follow_groups()

    def follow_groups(self) -> None:
        """Follow added or edited groups; start over if the way to measure changed."""
        groups, known = self._optimizer.param_groups, len(self._members)
        members = [group["params"] for group in groups]
        by_moments = steps_by_moments(self._optimizer)
        if self._by_moments != by_moments:
            self._by_moments = by_moments
            self._ledger.restart(self._unavailable())
            self._begin()
            return
        if same_members(members, self._members):
            return
        if same_members(members[:known], self._members):
            for group in groups[known:]:
                self._ledger.add_group(group, self._names)
            self._ledger.follow([p for group in groups for p in group["params"]])
        else:
            follow_edit(self._ledger, self._members, groups, self._names)
            self._pass.reset()
        self._members = [list(params) for params in members]

    # ---------------------------------------------------------------- what is read

    @property
    def sinks(self) -> SinkQueue:
        """The sinks' queue."""
        self._ledger.settle()
        return self._sinks

    @property
    def measure_every(self) -> int:
        """One step in this many is measured."""
        return self._measure_every

    def serve(self, every: int | None) -> None:
        """Record readings as often as a controller wants them."""
        self._serves = True
        if every is not None:
            self._ledger.record_every = every

    def fresh_reading(self, is_due: Callable[[int], bool]) -> Reading | None:
        """Return the newest recorded reading if it has not been handed over yet (``is_due`` is not used)."""
        return self._ledger.fresh_reading()

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return averages and counters of every group."""
        self.follow_groups()
        self._sinks.flush()
        return {"by_moments": self._by_moments, "groups": self._ledger.export_groups()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Averages of an optimizer that was measured in another way start afresh, with a warning.

        Raises:
            ValueError: if the state holds more groups than the optimizer; nothing has changed then.
        """
        saved, held = state["groups"], len(self._optimizer.param_groups)
        if len(saved) > held:
            raise ValueError(f"the observer's state has {len(saved)} groups, but the optimizer has {held}")
        self._by_moments = steps_by_moments(self._optimizer)
        self._ledger.reset(self._unavailable())
        self._begin()
        if state["by_moments"] != self._by_moments:
            warnings.warn(
                "the observer's state is from an optimizer measured in another way: averages start afresh",
                RuntimeWarning,
                stacklevel=3,
            )
            saved = [{k: v for k, v in group.items() if k not in ("meter", "readings")} for group in saved]
        self._ledger.import_groups(saved)
        self._ledger.rewind()
        self.begun_at = self._ledger.run.step


def closure_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return a step's closure from the arguments of its hooks, of which the optimizer is the first."""
    return args[1] if len(args) > 1 else kwargs.get("closure")


def check_whole_step(optimizer: Optimizer, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a step of a single parameter: an iteration then consists of one such step per parameter.

    Raises:
        RuntimeError: if the step was called with one of the parameters.
    """
    given = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, Tensor)]
    if given and any(x is p for x in given for group in optimizer.param_groups for p in group["params"]):
        raise RuntimeError(
            f"step() must be called for all parameters at once, but this {type(optimizer).__name__} was "
            "called for one (gradient release), so iterations cannot be counted or measured. Remove the "
            "observer or scheduler, or train without gradient release"
        )


def when_gradients_are_there(
    args: tuple[Any, ...], kwargs: dict[str, Any], read: Callable[[int], None]
) -> tuple[Any, Any] | None:
    """Call ``read`` when a step's gradients exist: at once, or each time its closure has run.

    Args:
        args, kwargs: as passed to a step pre-hook, the optimizer first.
        read: receives the number of times that the step's gradients have been formed, from 1.

    Returns:
        The return value for the hook: None, or the arguments with the closure wrapped.
    """
    closure = closure_of(args, kwargs)
    if closure is None:
        read(1)
        return None
    times = 0
    placed = [(p, p._version) for group in args[0].param_groups for p in group["params"]]

    def measured() -> Any:
        nonlocal times
        # a gradient at weights that the optimizer has moved meanwhile (SAM) is not this step's
        times += times == 0 and any(p._version != version for p, version in placed)
        out = closure()
        times += 1
        read(times)
        return out

    if len(args) > 1:
        return (args[0], measured, *args[2:]), kwargs
    return args, {**kwargs, "closure": measured}


def is_dry(optimizer: Optimizer) -> bool:
    """Whether the coming step is a checkpoint library's dry step: every lr and every gradient is 0.

    A learning rate on a device is not waited for and counts as not 0.
    """
    for group in optimizer.param_groups:
        lr = group_lr(group)
        if (isinstance(lr, Tensor) and lr.device.type != "cpu") or float(lr) != 0.0:
            return False
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in params if p.grad is not None]
    # read every gradient: reading one may need all ranks
    there, moving = bool(grads), any([g.is_sparse or bool(local(g).any()) for g in grads])
    sharding = Sharding(params)
    if sharding:  # a rank whose shards are empty or at rest learns of the others'
        flags = torch.tensor([[float(there), float(moving)]], dtype=torch.float64, device="cpu").expand(
            len(params), 2
        )
        there, moving = sharding.add(flags.clone()).any(dim=0).tolist()
    return there and not moving


def _steps_taken(optimizer: Optimizer) -> int:
    """Return the number of steps that an optimizer has taken, if its state counts them."""
    counts = [state.get("step", 0) for state in optimizer.state.values() if isinstance(state, dict)]
    return int(max((float(n) for n in counts if isinstance(n, (int, float, Tensor))), default=0))
