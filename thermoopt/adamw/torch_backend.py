"""How a step is taken and measured: the interface, and torch's own step after a measuring pass."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Protocol

import torch
from torch.optim import Optimizer

from thermoopt.account import PendingSums
from thermoopt.adamw.compiled import Traceable, split_traceable
from thermoopt.adamw.plans import Batches, account
from thermoopt.adamw.rates import Rates, scaled_groups
from thermoopt.adamw.torch_step import torch_step
from thermoopt.adamw.torch_sums import torch_sums

__all__ = ["Backend", "MeasuringPass", "TorchBackend"]


class Backend(Protocol):
    """Takes steps for an optimizer.

    Attributes:
        name: what it is.
        requested: what the user asked for.
        measure_every: how often it measures unless told.
    """

    name: str
    requested: str
    measure_every: int

    def step(
        self,
        optimizer: torch.optim.AdamW,
        rates: Sequence[Rates],
        due: bool,
        traced: list[Traceable] | None = None,
    ) -> PendingSums | None:
        """Take one step at the given rates; return its sums if it was due to be measured.

        Where ``traced`` is a list, ``torch.compile`` takes the step of what the backend puts into it.
        """

    def reset(self) -> None:
        """Forget everything about tensors: groups or state were replaced."""


class MeasuringPass:
    """Sums of the coming step of torch's Adam or AdamW, or of a ThermoAdamW; nothing is written.

    Args:
        kernel: a kernel with a dry mode that measures the tensors it can read in one pass; torch operations
            measure all others.
    """

    def __init__(self, kernel: ModuleType | None = None) -> None:
        self._batches = None
        if kernel is not None:
            self._batches = Batches(kernel, lambda group: True, dry=True, on_overlap="leave")

    def sums(self, optimizer: Optimizer, rates: Sequence[Rates], half: int | None = None) -> PendingSums:
        """Start forming the sums of a step that is about to be taken at the given rates.

        Args:
            optimizer: about to step.
            rates: effective rates of its groups.
            half: 0 or 1 lets the kernel read that half of large tensors in the place of all
                (:meth:`thermoopt.kernels.native.Plan.step`).
        """
        if self._batches is None:
            return torch_sums(optimizer, rates)
        tensors = self._batches.sort(optimizer)
        return account(optimizer, rates, tensors, self._batches.run(optimizer, rates, tensors, True, half))

    def reset(self) -> None:
        """Forget the kernel's plans: groups or state were replaced."""
        if self._batches is not None:
            self._batches.reset()


class TorchBackend:
    """torch's own step, any flags, after a measuring pass that writes nothing.

    Args:
        requested: what the user asked for.
        kernel: as for :class:`MeasuringPass`.
    """

    name = "torch"
    measure_every = 10
    """A pass in torch operations takes as long as a step or two; every 10th keeps that to some percent."""

    def __init__(self, requested: str, kernel: ModuleType | None = None) -> None:
        self.requested = requested
        self._pass = MeasuringPass(kernel)

    def step(
        self,
        optimizer: torch.optim.AdamW,
        rates: Sequence[Rates],
        due: bool,
        traced: list[Traceable] | None = None,
    ) -> PendingSums | None:
        """Measure if due, then let torch take the step."""
        pending = self._pass.sums(optimizer, rates) if due else None
        if traced is not None:
            eager, parts = split_traceable(optimizer, rates)
            traced += parts
            if eager:
                torch_step(optimizer, eager)
            return pending
        neutral = all(rate.neutral for rate in rates)
        torch_step(optimizer, None if neutral else scaled_groups(optimizer.param_groups, rates))
        return pending

    def reset(self) -> None:
        """Forget the kernel's plans."""
        self._pass.reset()
