"""Facts about a run that a record needs besides readings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch.optim import Optimizer

from thermoopt.account import Losses
from thermoopt.observer.source import Source
from thermoopt.physics import LR, LR_TIMES_D, NO_LR
from thermoopt.traits import found_factor

__all__ = ["rate_kind", "run_facts"]


def rate_kind(optimizer: Optimizer) -> str:
    """Tell what the rate of an optimizer's steps is: :data:`~thermoopt.physics.LR` and the others."""
    groups = optimizer.param_groups
    if any(group.get("lr") is None for group in groups):
        return NO_LR
    return LR_TIMES_D if any(found_factor(optimizer, group) is not None for group in groups) else LR


class _Observed(Protocol):
    """An observer."""

    ema_steps: float
    steps: int
    skipped: dict[str, int]
    losses: Losses
    start_norms: dict[str, float]
    frozen: frozenset[str]
    sparse: frozenset[str]
    matrices: frozenset[str]
    rate_kind: str
    length: int | None
    _source: Source

    def own_names(self) -> dict[str, str]: ...


def run_facts(observer: _Observed, settled: bool) -> dict[str, Any]:
    """Return, as plain data, what diagnosis needs to know about a run and readings do not contain.

    Args:
        observer: of the run.
        settled: whether to wait for a device, which the counts need.
    """
    own = observer.own_names()

    def both(names: Iterable[str]) -> list[str]:
        """Return layers under both the optimizer's and the observer's names."""
        return sorted({*names, *(own[name] for name in names if name in own)})

    norms = observer.start_norms
    facts: dict[str, Any] = {
        "ema_steps": observer.ema_steps,
        "start_norms": {**norms, **{own[name]: norm for name, norm in norms.items() if name in own}},
        "matrices": both(observer.matrices),
        "frozen": both(observer.frozen | observer.sparse),  # of neither is a gradient missing
        "rate_kind": observer.rate_kind,
    }
    if observer._source.begun_at is not None:
        facts["begun_at"] = observer._source.begun_at
    if observer.length is not None:
        facts["length"] = observer.length
    if settled:
        losses = observer.losses
        facts |= {"steps": observer.steps, "skipped": observer.skipped, "bad_losses": losses.bad}
        if len(losses):
            facts["first_loss"] = [int(losses.steps[0]), float(losses.values[0])]
    return facts
