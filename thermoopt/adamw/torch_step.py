"""torch's own AdamW step, over all groups of an optimizer or over others in their place."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["torch_step"]


def torch_step(optimizer: torch.optim.AdamW, groups: list[dict[str, Any]] | None = None) -> None:
    """Run torch's own AdamW step, over ``groups`` instead of the optimizer's where given.

    ``torch.optim.AdamW.step`` may carry the wrapper that runs step hooks; a subclass's step has one already,
    and hooks must run once.
    """
    step = torch.optim.AdamW.step
    if getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    if groups is None:
        step(optimizer)
        return
    own = optimizer.param_groups
    optimizer.param_groups = groups
    try:
        step(optimizer)
    finally:
        optimizer.param_groups = own
