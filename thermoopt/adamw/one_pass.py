"""Steps in one pass: a kernel updates and sums the tensors it can take; torch takes the rest."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thermoopt.account import Averaged, Done, Ledger
from thermoopt.adamw.compiled import Traceable, torch_step
from thermoopt.adamw.plans import PlanCache, account
from thermoopt.adamw.rates import Rates, scaled_groups
from thermoopt.adamw.sorting import Place, Sorted
from thermoopt.adamw.torch_backend import WARM_STEPS
from thermoopt.adamw.torch_sums import one_device
from thermoopt.kernels import Addresses
from thermoopt.tensors import WARM_UP, capturing, is_distributed

__all__ = ["OnePassBackend"]


class OnePassBackend:
    """One kernel call per device for update, sums and averages of every tensor it can take.

    A tensor's very first step is torch's fused one, which creates the state as torch would. Tensors the
    kernel cannot take go to torch's own step and a measuring pass, silently.

    Args:
        name: ``"native"`` or ``"triton"``.
        requested: name that the user asked for. Under ``"auto"`` a group with ``fused`` or ``foreach`` given
            keeps torch's step, and tensors that share memory go back to it with a warning.
        kernel: module with ``ineligible``, ``Plan`` and ``ON_DEVICE``.
    """

    measure_every = 1

    def __init__(self, name: str, requested: str, kernel: ModuleType) -> None:
        self.name = name
        self.requested = requested
        self._on_device: bool = kernel.ON_DEVICE
        self._cold = WARM_STEPS
        overlap = "warn" if requested == "auto" else "raise"
        # no method of its own: a circle would keep the tensors until the garbage collector runs
        takes = partial(_takes, requested, self._on_device)
        self._plans = PlanCache(kernel, takes, dry=False, on_overlap=overlap)

    def reset(self) -> None:
        """Forget the plans after groups or state were replaced; tensors are then examined again."""
        self._cold = WARM_STEPS
        self._plans.reset()

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

        Nothing is left to a compiler: the kernel is compiled already.

        Raises:
            ValueError: for tensors that share memory, by name, unless the backend is ``"auto"``.
            RuntimeError: for a CUDA graph that captures a step before one like it has been taken.
        """
        self._cold -= 1
        tensors = self._plans.sort(optimizer)
        found = self._plans.whole(optimizer, tensors, ledger)
        if found is None:
            return self._in_parts(optimizer, rates, ledger, due, before, tensors)
        batch, grads = found
        settings = self._plans.settings(optimizer, rates, batch)

        def checked(at: NDArray[np.int64]) -> None:
            carrying = None if self._on_device else batch.plan
            before(Addresses(batch.layer, batch.plan.params_at, at, carrying))

        try:
            batch.plan.step(grads, **settings, measure=due, number=ledger.run.step + 1, before=checked)
        except ValueError:
            if not self._plans.look_again(batch, grads):  # nothing has moved
                raise
            return self._in_parts(optimizer, rates, ledger, due, before, self._plans.sort(optimizer))
        return Averaged(due, batch.plan.refused)

    def _in_parts(
        self,
        optimizer: torch.optim.AdamW,
        rates: Sequence[Rates],
        ledger: Ledger,
        due: bool,
        before: Callable[..., None],
        tensors: Sorted,
    ) -> Done:
        """Take a step that the kernel and torch share, or that lies on several devices or ranks."""
        if capturing():
            _check_captured_parts(optimizer, tensors, ledger)
            due = False  # the sums of both meet on the host
        if any(optimizer.param_groups[i]["params"][j].grad.is_sparse for _, i, j in tensors.rest):
            torch_step(optimizer)  # raises torch's own error before anything has moved
        before()
        if self._on_device and (home := one_device(optimizer, ledger)) is not None:
            ledger.keep_on(home)
        done = self._plans.run(optimizer, rates, tensors, due)
        left = account(optimizer, rates, tensors, done) if due else None
        for part, flags in ((tensors.rest, {}), (tensors.fresh, {"fused": True, "foreach": None})):
            for alike in _apart(optimizer.param_groups, part):
                torch_step(optimizer, _restricted(optimizer.param_groups, rates, alike, flags))
        return left

    def is_warming(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether kernels of a captured step may still have to be compiled, which a capture forbids."""
        return self._on_device and self._cold > 0 and any(group["capturable"] for group in groups)

    def put_rates(self, rates: Sequence[Rates]) -> None:
        """Make captured graphs take their next step at these rates."""
        self._plans.put_rates(rates)


def _takes(requested: str, on_device: bool, group: dict[str, Any]) -> bool:
    """Whether a group's flags leave its step to the kernel."""
    if group["differentiable"] or (group["capturable"] and not on_device):
        return False
    return requested != "auto" or (group["fused"] is None and group["foreach"] is None)


def _check_captured_parts(optimizer: torch.optim.AdamW, tensors: Sorted, ledger: Ledger) -> None:
    """Raise for a step in parts that no graph can capture; warn of what a graph will leave out.

    Raises:
        RuntimeError: if ranks share layers, tensors are new, or a controller is to change torch's rates.
    """
    if ledger.sharding:
        raise RuntimeError(
            "a CUDA graph cannot capture the step of sharded parameters: Python starts the sum over ranks"
        )
    if tensors.fresh or ledger.table is None:
        raise RuntimeError(WARM_UP)
    names = [ledger.meter.names[layer] for layer, _, _ in tensors.rest]
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    if names and getattr(optimizer, "controller", None) is not None:
        raise RuntimeError(
            "with a controller, a CUDA graph can capture step() only if the kernel takes every parameter, "
            f"but torch takes {some}, whose rates would be fixed in the graph"
        )
    warnings.warn(
        "this captured step is not measured: the kernel does not take all of it (torch takes "
        f"{some or 'none'}), or it spans several devices",
        RuntimeWarning,
        stacklevel=6,
    )


def _apart(groups: Sequence[dict[str, Any]], part: Sequence[Place]) -> list[list[Place]]:
    """Separate sharded parameters from plain ones: torch's fused and foreach steps take no mixture."""
    kinds: dict[bool, list[Place]] = {}
    for place in part:
        _, i, j = place
        kinds.setdefault(is_distributed(groups[i]["params"][j]), []).append(place)
    return list(kinds.values())


def _restricted(
    groups: Sequence[dict[str, Any]], rates: Sequence[Rates], part: Sequence[Place], flags: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return copies of the groups with effective rates, other flags and only some of the parameters."""
    positions: dict[int, list[int]] = {}
    for _, i, j in part:
        positions.setdefault(i, []).append(j)
    cut, cut_rates = [], []
    for i, js in positions.items():
        factors = rates[i].factors
        cut.append({**groups[i], **flags, "params": [groups[i]["params"][j] for j in js]})
        cut_rates.append(replace(rates[i], factors=None if factors is None else [factors[j] for j in js]))
    return scaled_groups(cut, cut_rates)
