"""Copies and pickles of a scheduler: a new one over the copy of its optimizer, with its state."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from thermoopt.controllers import Controller
from thermoopt.scheduler.plan import SchedulePlan

__all__ = ["taken_apart"]


def taken_apart(
    scheduler: LRScheduler, plan: SchedulePlan, controller: Controller | None, has_own_observer: bool
) -> tuple[Any, ...]:
    """Return what pickle and deepcopy make a copy of, as ``__reduce_ex__`` does; step hooks cannot be copied.

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
        with _told_before():
            blank.reset()  # its state is in the scheduler's
    kind, optimizer, state = type(scheduler), scheduler.optimizer, scheduler.state_dict()
    return _put_together, (kind, optimizer, asdict(plan), blank, state)


@contextmanager
def _told_before() -> Iterator[None]:
    """Leave out what a controller says once of a run's groups: the original has said it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="groups differ in lr")
        yield


def _put_together(
    kind: Callable[..., LRScheduler],
    optimizer: Optimizer,
    plan: Mapping[str, Any],
    controller: Controller | None,
    state: dict[str, Any],
) -> LRScheduler:
    with _told_before():
        scheduler = kind(optimizer, **plan, controller=controller)
        scheduler.load_state_dict(state)
    return scheduler
