"""Checks of a ThermoScheduler's arguments, before anything is created."""

from __future__ import annotations

from collections.abc import Iterator

from torch.optim import Optimizer

from thermoopt.adamw import ThermoAdamW, check_materialized
from thermoopt.controllers import Controller, Cooling
from thermoopt.observer import Observer
from thermoopt.tensors import check_whole
from thermoopt.traits import found_factor

__all__ = ["check_control", "check_lr"]


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
