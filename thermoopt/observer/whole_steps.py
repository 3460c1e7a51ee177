"""Step hooks that run once per step, even if a step calls its parent class's."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.optim import Optimizer

from thermoopt.uncompiled import uncompiled

__all__ = ["on_whole_steps"]

Hook = Callable[[Optimizer, Any, Any], Any]

_HOOKED = Optimizer.profile_hook_step(lambda self: None).__code__
"""The frame in which torch runs a step and its hooks."""


def on_whole_steps(hook: Hook) -> Hook:
    """Return a step hook that ignores steps of parent classes called from within an optimizer's step.

    torch wraps the ``step`` of a class with its hooks when the first optimizer of exactly that class is
    created. The step of a subclass that ends in ``super().step()`` therefore runs its hooks twice if an
    optimizer of the parent class was created before, and once otherwise. Only the outer one is the step.

    Args:
        hook: for ``register_step_pre_hook`` or ``register_step_post_hook``.
    """

    @uncompiled
    @functools.wraps(hook)
    def outer_only(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        return None if _is_inner(optimizer) else hook(optimizer, args, kwargs)

    return outer_only


def _is_inner(optimizer: Optimizer) -> bool:
    """Whether the running hooks are those of a step inside another step of the same optimizer."""
    hooked = [getattr(vars(cls).get("step"), "hooked", False) for cls in type(optimizer).__mro__]
    if sum(hooked) < 2:
        return False
    depth = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and depth < 2:
        # variables are copied for those frames only
        depth += frame.f_code is _HOOKED and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return depth >= 2
