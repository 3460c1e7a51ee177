"""Checks of a ThermoScheduler's arguments, before anything is created."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.optim import Optimizer

from thermoopt.account import from_leaf
from thermoopt.adamw import ThermoAdamW, check_materialized
from thermoopt.controllers import Controller, Cooling, check_numbers, check_saved_controller
from thermoopt.observer import Observer
from thermoopt.tensors import check_whole
from thermoopt.traits import found_factor

__all__ = ["check_control", "check_lr", "check_state", "observer_first"]


def observer_first(init: Callable[..., None]) -> Callable[..., None]:
    """Accept an observer before the optimizer: ``ThermoScheduler(observer, optimizer, ...)``."""

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        if args and isinstance(args[0], Observer):
            init(self, *args[1:], observer=args[0], **kwargs)
        else:
            init(self, *args, **kwargs)

    return wrapper


def _parts(controller: Controller) -> Iterator[Controller]:
    yield controller
    for part in getattr(controller, "controllers", ()):
        yield from _parts(part)


def check_lr(optimizer: Optimizer) -> None:
    """Raise ValueError if a group has no lr to set."""
    for i, group in enumerate(optimizer.param_groups):
        if group.get("lr") is None:
            raise ValueError(
                f"every param group must have an lr to schedule, but group {i} of this "
                f"{type(optimizer).__name__} has none: one that finds its own rate cannot be scheduled"
            )


def check_control(
    optimizer: Optimizer, controller: Controller | None, observer: Observer | None, shape: str
) -> None:
    """Raise TypeError or ValueError if controller, observer, shape and optimizer do not fit together."""
    if observer is not None:
        if not isinstance(observer, Observer):
            raise TypeError(f"observer must be None or a thermoopt.observer.Observer, got {observer!r}")
        if observer.optimizer is not optimizer:
            raise ValueError("observer must observe the optimizer given, got one that observes another")
    if controller is None:
        return
    params = [p for group in optimizer.param_groups for p in group["params"]]
    check_materialized(params)
    check_whole(params)
    if not isinstance(controller, Controller):
        raise TypeError(f"controller must be None or a thermoopt.controllers.Controller, got {controller!r}")
    if shape != "constant" and any(isinstance(part, Cooling) for part in _parts(controller)):
        raise ValueError(
            "shape must be 'constant' with a controller that cools too, since the two would "
            f"multiply, got {shape!r}"
        )
    if controller.needs and any(
        found_factor(optimizer, group) is not None for group in optimizer.param_groups
    ):
        own = type(optimizer).__name__
        raise ValueError(
            f"controller sets absolute rates, but {own} finds its own step size (its groups hold 'd'): the "
            "two would multiply. Use ThermoScheduler without a controller, or one without travel, such as "
            "Thermostat('coherence')"
        )
    if isinstance(optimizer, ThermoAdamW) and optimizer.controller is not None:
        raise ValueError("controller must be None for a ThermoAdamW that has a controller of its own")


def check_state(state: Mapping[str, Any], controller: Controller | None) -> None:
    """Refuse a saved scheduler that has something else in place of a number, before anything has changed.

    Raises:
        ValueError: naming the key and its value; or if the controller's state is that of another kind.
    """
    groups = [{k: v for k, v in group.items() if k != "owns_wd"} for group in state["groups"]]
    numbers = {key: state[key] for key in ("last_epoch", "taken", "step_count")}
    check_numbers({**numbers, "groups": groups, "rms": state.get("rms", {})}, 1.0, "state_dict")
    for key in ("layer_factors", "handed_on"):
        check_numbers(from_leaf(state.get(key, "{}")), 1.0, f"state_dict[{key!r}]")
    if controller is not None and state["controller"] is not None:
        check_saved_controller(controller, from_leaf(state["controller"]), "state_dict['controller']")
