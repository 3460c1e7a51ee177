"""Steps in one pass: update and sums together where a kernel can take a tensor; torch takes the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch

from thermoopt.account import PendingSums
from thermoopt.adamw.compiled import Traceable
from thermoopt.adamw.plans import Batches, Place, account
from thermoopt.adamw.rates import Rates, scaled_groups
from thermoopt.adamw.torch_step import torch_step
from thermoopt.tensors import is_distributed

__all__ = ["OnePassBackend"]


class OnePassBackend:
    """One kernel call a device for update and sums of every tensor it can take.

    A tensor's very first step is torch's fused one, which creates the state as torch would. Tensors the
    kernel cannot take go to torch's own step and a measuring pass, silently.

    Args:
        name: ``"native"`` or ``"triton"``.
        requested: what the user asked for. Under ``"auto"`` a group with ``fused`` or ``foreach`` given
            keeps torch's step, and tensors that share memory go back to it with a warning.
        kernel: module with ``ineligible`` and ``Plan``.
    """

    measure_every = 1

    def __init__(self, name: str, requested: str, kernel: ModuleType) -> None:
        self.name = name
        self.requested = requested
        overlap = "warn" if requested == "auto" else "raise"
        self._batches = Batches(kernel, self._takes, dry=False, on_overlap=overlap)

    def reset(self) -> None:
        """Forget the plans: groups or state were replaced, tensors are looked at anew."""
        self._batches.reset()

    def step(
        self,
        optimizer: torch.optim.AdamW,
        rates: Sequence[Rates],
        due: bool,
        traced: list[Traceable] | None = None,
    ) -> PendingSums | None:
        """Take one step at the given rates; return its sums if it was due to be measured.

        Nothing is left to a compiler: the kernel is compiled already.

        Raises:
            ValueError: for tensors that share memory, by name, unless the backend is ``"auto"``.
        """
        tensors = self._batches.sort(optimizer)
        if any(optimizer.param_groups[i]["params"][j].grad.is_sparse for _, i, j in tensors.rest):
            torch_step(optimizer)  # raises torch's own error before anything has moved
        done = self._batches.run(optimizer, rates, tensors, due)
        pending = account(optimizer, rates, tensors, done) if due else None
        for part, flags in ((tensors.rest, {}), (tensors.fresh, {"fused": True, "foreach": None})):
            for alike in _apart(optimizer.param_groups, part):
                torch_step(optimizer, _restricted(optimizer.param_groups, rates, alike, flags))
        return pending

    def _takes(self, group: dict[str, Any]) -> bool:
        """Whether the group's flags leave its step to the kernel."""
        if group["differentiable"] or (group["capturable"] and self.name != "triton"):
            return False
        return self.requested != "auto" or (group["fused"] is None and group["foreach"] is None)


def _apart(groups: Sequence[dict[str, Any]], part: Sequence[Place]) -> list[list[Place]]:
    """Tell sharded parameters from plain ones: torch's fused and foreach steps take no mixture."""
    kinds: dict[bool, list[Place]] = {}
    for place in part:
        _, i, j = place
        kinds.setdefault(is_distributed(groups[i]["params"][j]), []).append(place)
    return list(kinds.values())


def _restricted(
    groups: Sequence[dict[str, Any]], rates: Sequence[Rates], part: Sequence[Place], flags: dict[str, Any]
) -> list[dict[str, Any]]:
    """Copies of the groups with effective rates, other flags, and only some of their parameters."""
    positions: dict[int, list[int]] = {}
    for _, i, j in part:
        positions.setdefault(i, []).append(j)
    cut, cut_rates = [], []
    for i, js in positions.items():
        factors = rates[i].factors
        cut.append({**groups[i], **flags, "params": [groups[i]["params"][j] for j in js]})
        cut_rates.append(replace(rates[i], factors=None if factors is None else [factors[j] for j in js]))
    return scaled_groups(cut, cut_rates)
