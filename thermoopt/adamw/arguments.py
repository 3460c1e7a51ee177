"""What ThermoAdamW checks of its own arguments before anything is made."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from thermoopt.controllers import Controller

__all__ = ["EMA_STEPS", "averaging_steps", "check_arguments", "check_count", "check_hookable"]

EMA_STEPS = 50
"""Steps an average is long unless told: long against the noise of a batch, short against a run."""


def check_arguments(controller: object, measure_every: object, ema_steps: object) -> None:
    """Refuse what cannot be used.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed.
    """
    if controller is not None and not isinstance(controller, Controller):
        raise TypeError(
            f"controller is {controller!r}; allowed is None or a thermoopt.controllers.Controller"
        )
    if measure_every is not None and (
        isinstance(measure_every, bool) or not isinstance(measure_every, int) or measure_every < 1
    ):
        raise (ValueError if isinstance(measure_every, int) else TypeError)(
            f"measure_every is {measure_every!r}; allowed is None or a whole number from 1"
        )
    if ema_steps is None:
        return
    if isinstance(ema_steps, bool) or not isinstance(ema_steps, (int, float)):
        raise TypeError(f"ema_steps is {ema_steps!r}; allowed is None or a number from 1")
    if not (math.isfinite(ema_steps) and ema_steps >= 1):
        raise ValueError(f"ema_steps is {ema_steps!r}; allowed is None or a number from 1")


def check_count(name: str, value: object) -> None:
    """Refuse what is no whole number from 1.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; allowed is a whole number from 1")
    if value < 1:
        raise ValueError(f"{name} is {value!r}; allowed is a whole number from 1")


def check_hookable(optimizer: object) -> None:
    """Refuse what runs no step hooks: a wrapper (Accelerate, Lightning) that is one by its type only.

    Raises:
        TypeError: naming the argument, its value and what is allowed.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is {optimizer!r}; allowed is a torch.optim.Optimizer")
    if not getattr(type(optimizer).step, "hooked", False):  # torch's own mark, set by Optimizer.__init__
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}, whose step() runs no step hooks; allowed is the "
            "torch.optim.Optimizer that it wraps (its .optimizer)"
        )


def averaging_steps(given: float | None, controller: Controller | None) -> float:
    """Length of the readings' average: the one given, else what the controller wants, else the default."""
    wanted = None if controller is None else controller.ema_steps
    return float(given if given is not None else wanted or EMA_STEPS)
