"""Counting an optimizer's steps: once each, when it has been taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from thermoopt.observer import check_whole_step, closure_of, is_dry, on_whole_steps

__all__ = ["count_steps"]


def count_steps(optimizer: Optimizer, count: Callable[[], None]) -> Callable[[], None]:
    """Call ``count`` after every step of an optimizer; return what ends that.

    A step that raised (in its closure, say) was not taken and does not count; nor does a checkpoint library's
    dry step, which can be told only before, while the gradients are there.

    Raises:
        RuntimeError: out of a step that is taken for one parameter only.
    """
    dry = False

    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        nonlocal dry
        check_whole_step(optimizer, args, kwargs)
        dry = closure_of(args, kwargs) is None and is_dry(optimizer)

    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not dry:
            count()

    handles = (
        optimizer.register_step_pre_hook(on_whole_steps(before)),
        optimizer.register_step_post_hook(on_whole_steps(after)),
    )

    def end() -> None:
        for handle in handles:
            handle.remove()

    return end
