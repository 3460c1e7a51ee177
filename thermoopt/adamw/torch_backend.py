"""How a step is taken and measured: the interface, and torch's own step after a measuring pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from thermoopt.account import Averaged, Done, Ledger
from thermoopt.adamw.compiled import Traceable, split_traceable, torch_step
from thermoopt.adamw.plans import PlanCache, account
from thermoopt.adamw.rates import Rates, scaled_groups
from thermoopt.adamw.torch_sums import FlatSums, one_device, torch_sums
from thermoopt.tensors import capturing

__all__ = ["Backend", "MeasuringPass", "TorchBackend"]


class Backend(Protocol):
    """Takes steps for an optimizer.

    Attributes:
        name: of the backend.
        requested: the name that the user asked for.
        measure_every: default number of steps between measured steps.
    """

    name: str
    requested: str
    measure_every: int

    def step(
        self,
        optimizer: torch.optim.AdamW,
        rates: Sequence[Rates],
        ledger: Ledger,
        due: bool,
        before: Callable[..., None],
        traced: list[Traceable] | None = None,
    ) -> Done:
        """Take one step at the given rates; return what is left to be averaged if it was due to be measured.

        A kernel may count the step and average its sums into the ledger by itself. If ``traced`` is a
        list, ``torch.compile`` steps what the backend puts into it. ``before`` is called once,
        before anything moves, with an :class:`~thermoopt.kernels.Addresses` if a kernel has checked all.
        """

    def is_warming(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the coming step must be measured so that a graph can capture one like it."""

    def put_rates(self, rates: Sequence[Rates]) -> None:
        """Make captured graphs take their next step at these rates."""

    def reset(self) -> None:
        """Forget everything about tensors after groups or state were replaced."""


WARM_STEPS = 3
"""Number of first steps, all measured, if a CUDA graph may capture a later one: torch warms up as many."""


class MeasuringPass:
    """Sums of the coming step of torch's Adam or AdamW, or of a ThermoAdamW; nothing is written.

    Args:
        kernel: a kernel with a dry mode that measures the tensors it can read in one pass; torch operations
            measure all others.
    """

    def __init__(self, kernel: ModuleType | None = None) -> None:
        self._flat = FlatSums()
        self._plans = None
        if kernel is not None:
            self._plans = PlanCache(kernel, lambda group: True, dry=True, on_overlap="leave")

    def sums(
        self,
        optimizer: Optimizer,
        rates: Sequence[Rates],
        ledger: Ledger,
        half: int | None = None,
        *,
        average: bool = True,
    ) -> Done:
        """Form the sums of a step that is about to be taken at the given rates.

        Args:
            optimizer: about to step.
            rates: effective rates of its groups.
            ledger: the one that what is returned is for.
            half: 0 or 1 makes the kernel read only that half of large tensors
                (:meth:`thermoopt.kernels.native.Plan.step`).
            average: whether a kernel may average the sums in at once; if not, they are always returned.
        """
        if self._plans is None:
            home = one_device(optimizer, ledger)
            if home is not None:
                ledger.keep_on(home)
                done = self._flat.sums(optimizer, rates, home)
                if done is not None:
                    return done
            return _unmeasured() if capturing() else torch_sums(optimizer, rates)
        tensors = self._plans.sort(optimizer)
        found = self._plans.whole(optimizer, tensors, ledger) if average else None
        if found is not None:
            batch, grads = found
            settings = self._plans.settings(optimizer, rates, batch, half)
            try:
                batch.plan.step(grads, **settings, measure=True, number=ledger.run.step + 1)
            except ValueError:
                if not self._plans.look_again(batch, grads):
                    raise
                tensors = self._plans.sort(optimizer)
            else:
                return Averaged(True, batch.plan.refused)
        if capturing():
            return _unmeasured()
        return account(optimizer, rates, tensors, self._plans.run(optimizer, rates, tensors, True, half))

    def reset(self) -> None:
        """Forget the kernel's plans after groups or state were replaced."""
        if self._plans is not None:
            self._plans.reset()


def _unmeasured() -> Done:
    """Warn that a graph takes its steps unmeasured."""
    warnings.warn(
        "this captured step is not measured: its tensors lie on several devices or are shared by ranks, or "
        "some have gaps in memory or are not float32, bfloat16 or float16",
        RuntimeWarning,
        stacklevel=7,
    )
    return None


class TorchBackend:
    """torch's own step, any flags, after a measuring pass that writes nothing.

    Args:
        requested: what the user asked for.
        kernel: as for :class:`MeasuringPass`.
    """

    name = "torch"
    measure_every = 10
    """A pass in torch operations takes as long as a step or two; one in 10 keeps that to a few percent."""

    def __init__(self, requested: str, kernel: ModuleType | None = None) -> None:
        self.requested = requested
        self._cold = WARM_STEPS
        self._pass = MeasuringPass(kernel)

    def step(
        self,
        optimizer: torch.optim.AdamW,
        rates: Sequence[Rates],
        ledger: Ledger,
        due: bool,
        before: Callable[..., None],
        traced: list[Traceable] | None = None,
    ) -> Done:
        """Measure if due, then let torch take the step."""
        before()
        done = self._pass.sums(optimizer, rates, ledger) if due else None
        self._cold -= 1
        if traced is not None:
            eager, parts = split_traceable(optimizer, rates)
            traced += parts
            if eager:
                torch_step(optimizer, eager)
            return done
        neutral = all(rate.neutral for rate in rates)
        torch_step(optimizer, None if neutral else scaled_groups(optimizer.param_groups, rates))
        return done

    def put_rates(self, rates: Sequence[Rates]) -> None:
        """Change nothing: torch's step has its rates in the graph, except for an ``lr`` that is a tensor."""

    def reset(self) -> None:
        """Forget the kernel's plans."""
        self._cold = WARM_STEPS
        self._pass.reset()

    def is_warming(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the coming step is one of the first, of groups that a graph may capture."""
        return self._cold > 0 and any(group["capturable"] for group in groups)
