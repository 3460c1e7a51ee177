"""What an optimizer is: how decay enters its step, what rate it steps at, whether it keeps Adam's moments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = [
    "COUPLED",
    "DECOUPLED",
    "UNKNOWN",
    "decay_entry",
    "decoupled_decay",
    "effective_lr",
    "found_factor",
    "group_decay",
    "group_lr",
    "has_adam_moments",
    "is_decoupled",
    "put_run_length",
    "run_length",
    "steps_by_moments",
]

DECOUPLED, COUPLED, UNKNOWN = "decoupled", "coupled", "unknown"
"""Ways in which decay enters: beside the update; in the gradient as torch's SGD has it, where its effect is
known; in some other way, where it cannot be told from the rest."""

_ADAMS = (torch.optim.Adam, torch.optim.AdamW)

_LENGTHS: WeakKeyDictionary[Optimizer, tuple[int | None, object]] = WeakKeyDictionary()
"""The length of an optimizer's ThermoScheduler, and the controller that it drives."""


def group_lr(group: Mapping[str, Any]) -> float | Tensor:
    """Learning rate of a group; 1 where it has none (the displacement itself then is the update)."""
    lr = group.get("lr")
    return 1.0 if lr is None else lr


def found_factor(optimizer: Optimizer, group: Mapping[str, Any]) -> float | Tensor | None:
    r"""Factor on a group's lr that the optimizer finds by itself and steps with next, None if there is none.

    D-Adaptation, Prodigy and what follows them keep their estimate of the distance to go as ``group["d"]``
    and step at :math:`\eta d`; the plain SGD among them at :math:`\eta d / \|g_0\|`, with the norm of the
    first gradient as ``group["g0_norm"]``, perhaps of its first group alone.
    """
    d, first = group.get("d"), group.get("g0_norm", optimizer.param_groups[0].get("g0_norm"))
    if not isinstance(d, (int, float, Tensor)):
        return None
    return d / first if first else d


def effective_lr(group: Mapping[str, Any], found: float | Tensor | None) -> float | Tensor:
    """Rate that a group steps at: its lr (:func:`group_lr`), times what the optimizer found."""
    return group_lr(group) if found is None else group_lr(group) * found


def group_decay(group: Mapping[str, Any]) -> float:
    """Weight decay that a group names, 0 where it names none."""
    return float(group.get("weight_decay") or 0.0)


def is_decoupled(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    """Whether decay is known to enter beside the update: AdamW, or the group's ``decoupled_weight_decay``."""
    return isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay", False))


def decoupled_decay(optimizer: Optimizer, group: Mapping[str, Any]) -> float:
    """Weight decay of a group that is known to be decoupled, else 0."""
    return group_decay(group) if is_decoupled(optimizer, group) else 0.0


def decay_entry(optimizer: Optimizer, group: Mapping[str, Any]) -> str:
    """Tell how a group's decay enters the step.

    :data:`DECOUPLED` as :func:`is_decoupled`, :data:`COUPLED` for SGD with torch's own step, else
    :data:`UNKNOWN` (Adam's coupled decay runs through its second moment).
    """
    if is_decoupled(optimizer, group):
        return DECOUPLED
    sgd = isinstance(optimizer, torch.optim.SGD) and _steps_like(optimizer, torch.optim.SGD)
    return COUPLED if sgd else UNKNOWN


def has_adam_moments(optimizer: Optimizer) -> bool:
    """Whether ``betas`` are those of Adam's two moments: torch's Adam and AdamW, and subclasses.

    The betas of Lion, say, are of no second moment.
    """
    return isinstance(optimizer, _ADAMS)


def steps_by_moments(optimizer: Optimizer) -> bool:
    """Whether the step is torch's own Adam or AdamW and no weight decay goes into its gradient."""
    return (
        has_adam_moments(optimizer)
        and _steps_like(optimizer, *_ADAMS)
        and all(is_decoupled(optimizer, group) or not group_decay(group) for group in optimizer.param_groups)
    )


def put_run_length(optimizer: Optimizer, steps: int | None, controller: object) -> None:
    """Keep where an optimizer's schedule ends, None if it does not, and the scheduler's controller."""
    _LENGTHS[optimizer] = steps, controller


def run_length(optimizer: Optimizer) -> int | None:
    """Return the step at which a controller or a ThermoScheduler has cooled the lr, None without one."""
    steps, controller = _LENGTHS.get(optimizer, (None, None))
    cooling = (getattr(c, "length", None) for c in (controller, getattr(optimizer, "controller", None)))
    return min((end for end in (steps, *cooling) if end is not None), default=None)


def _steps_like(optimizer: Optimizer, *kinds: type[Optimizer]) -> bool:
    """Whether a class has the step of one of torch's own, below whatever wraps it."""
    return inspect.unwrap(type(optimizer).step) in [inspect.unwrap(kind.step) for kind in kinds]
