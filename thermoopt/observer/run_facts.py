"""What a record should know of a run besides its readings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from thermoopt.account import Losses

__all__ = ["run_facts"]


class _Observed(Protocol):
    """An observer."""

    ema_steps: float
    steps: int
    skipped: dict[str, int]
    losses: Losses
    start_norms: dict[str, float]
    frozen: frozenset[str]
    matrices: frozenset[str]

    def own_names(self) -> dict[str, str]: ...


def run_facts(observer: _Observed, settled: bool) -> dict[str, Any]:
    """Return what diagnosis needs of a run and readings do not say, as plain data.

    Args:
        observer: of the run.
        settled: whether what is still on a device may be waited for, which counts need.
    """
    own = observer.own_names()

    def both(names: Iterable[str]) -> list[str]:
        """Layers by their names in readings of either kind, the optimizer's and the observer's."""
        return sorted({*names, *(own[name] for name in names if name in own)})

    norms = observer.start_norms
    facts: dict[str, Any] = {
        "ema_steps": observer.ema_steps,
        "start_norms": {**norms, **{own[name]: norm for name, norm in norms.items() if name in own}},
        "matrices": both(observer.matrices),
        "frozen": both(observer.frozen),
    }
    if settled:
        losses = observer.losses
        facts |= {"steps": observer.steps, "skipped": observer.skipped, "bad_losses": losses.bad}
        if len(losses):
            facts["first_loss"] = [int(losses.steps[0]), float(losses.values[0])]
    return facts
