"""Counting an optimizer's steps: once each, when it has been taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from thermoopt.observer import check_whole_step, closure_of, is_dry
from thermoopt.uncompiled import uncompiled

__all__ = ["count_steps"]


def count_steps(optimizer: Optimizer, count: Callable[[], None]) -> Callable[[], None]:
    """Call ``count`` after every step of an optimizer; return what ends that.

    A step that raised (in its closure, say) was not taken and does not count; nor does a checkpoint library's
    dry step, which can be told only before, while the gradients are there.

    Raises:
        RuntimeError: out of a step that is taken for one parameter only.
    """
    dry = False

    @uncompiled
    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        nonlocal dry
        check_whole_step(optimizer, args, kwargs)
        dry = closure_of(args, kwargs) is None and is_dry(optimizer)

    @uncompiled
    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not dry:
            count()

    handles = optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)

    def end() -> None:
        for handle in handles:
            handle.remove()

    return end
