"""What ThermoAdamW checks of its own arguments before anything is made."""

from __future__ import annotations

import math

from thermoopt.controllers.base import Controller

__all__ = ["EMA_STEPS", "averaging_steps", "check_arguments"]

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


def averaging_steps(given: float | None, controller: Controller | None) -> float:
    """Length of the readings' average: the one given, else what the controller wants, else the default."""
    wanted = None if controller is None else controller.ema_steps
    return float(given if given is not None else wanted or EMA_STEPS)
