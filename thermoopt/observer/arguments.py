"""Checks of an observer's arguments, made before anything is hooked."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch.optim import Optimizer

from thermoopt.adamw import check_count, check_hookable, check_materialized
from thermoopt.observer.tracker import TRACKABLE

__all__ = ["check_arguments"]


def check_arguments(
    model: object, optimizer: Optimizer, log_every: object, track: object, ema_steps: object
) -> None:
    """Check the arguments of an :class:`~thermoopt.Observer`.

    Raises:
        TypeError, ValueError: with the name of the argument, its value and what is allowed.
    """
    check_hookable(optimizer)
    check_materialized(p for group in optimizer.param_groups for p in group["params"])
    if model is not None:
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model must be None or a torch.nn.Module, got {model!r}")
        held = {p for group in optimizer.param_groups for p in group["params"]}
        if held.isdisjoint(model.parameters()):
            raise ValueError(
                "model must be None or the model that the optimizer steps, got a "
                f"{type(model).__name__} that shares no parameter with it"
            )
    check_count("log_every", log_every)
    if isinstance(track, str) or not isinstance(track, Collection):
        raise TypeError(f"track must be a tuple of {', '.join(map(repr, TRACKABLE))}, got {track!r}")
    if unknown := [name for name in track if name not in TRACKABLE]:
        raise ValueError(f"track must hold only {', '.join(map(repr, TRACKABLE))}, got {unknown!r}")
    if isinstance(ema_steps, bool) or not isinstance(ema_steps, (int, float)):
        raise TypeError(f"ema_steps must be a number >= 1, got {ema_steps!r}")
    if not (math.isfinite(ema_steps) and ema_steps >= 1):
        raise ValueError(f"ema_steps must be a number >= 1, got {ema_steps!r}")
