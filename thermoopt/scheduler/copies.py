"""Copies and pickles of a scheduler: a new one over the copy of its optimizer, with its state."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from thermoopt.controllers import Controller

__all__ = ["taken_apart", "told_before"]


def taken_apart(
    scheduler: LRScheduler,
    own: type[LRScheduler],
    names: Collection[str],
    controller: Controller | None,
    has_own_observer: bool,
) -> tuple[Any, ...]:
    """Return what pickle and deepcopy make a copy of, as ``__reduce_ex__`` does; step hooks cannot be copied.

    A subclass is put together as the class it extends, whose arguments are known, and keeps what it added.

    Args:
        scheduler: the original.
        own: the ThermoScheduler that it is or extends.
        names: attributes that this class sets; all others are copied as they are.
        controller, has_own_observer: of the original.

    Raises:
        TypeError: for a scheduler whose observer was given to it: an observer is not copied.
    """
    if not has_own_observer:
        raise TypeError(
            "a ThermoScheduler that was given an observer cannot be copied or pickled: the observer measures "
            "through hooks on its own optimizer. Create a new scheduler and load its state_dict()"
        )
    blank = copy.deepcopy(controller)
    if blank is not None:
        with told_before():
            blank.reset()  # its state is in the scheduler's
    state = own.state_dict(scheduler)
    parts = (own, type(scheduler), scheduler.optimizer, state["plan"], blank, state)
    return _put_together, parts, {k: v for k, v in vars(scheduler).items() if k not in names}


@contextmanager
def told_before() -> Iterator[None]:
    """Leave out what a controller says once of a run's groups, where it has been said."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="groups differ in lr")
        yield


def _put_together(
    own: Callable[..., LRScheduler],
    kind: type[LRScheduler],
    optimizer: Optimizer,
    plan: Mapping[str, Any],
    controller: Controller | None,
    state: dict[str, Any],
) -> LRScheduler:
    with told_before():
        scheduler = own(optimizer, **plan, controller=controller)
        scheduler.load_state_dict(state)
    scheduler.__class__ = kind
    return scheduler
