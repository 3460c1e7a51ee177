"""Checks of what ThermoAdamW is given: arguments before anything is built, and state that is not its own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from thermoopt.account import from_leaf
from thermoopt.controllers import Controller, check_numbers, check_saved_controller
from thermoopt.tensors import check_whole

__all__ = [
    "EMA_STEPS",
    "averaging_steps",
    "check_arguments",
    "check_count",
    "check_hookable",
    "check_materialized",
    "check_saved",
    "drop_foreign_state",
    "inner_optimizer",
    "plain_number",
    "tell_of_missing_moments",
    "tell_of_scales",
]

EMA_STEPS = 50
"""Default length of an average, in steps: long compared with batch noise, short compared with a run."""


BY_LAYER = ("layer_factors", "start_rms")
"""Numbers of layers that a group keeps; averages and sums of a diverging run may be anything."""


def check_arguments(
    controller: object, measure_every: object, ema_steps: object, groups: Sequence[Mapping[str, Any]]
) -> None:
    """Check the arguments that ThermoAdamW has beside torch's.

    Args:
        controller, measure_every, ema_steps: as given.
        groups: parameter groups, as torch has made and checked them.

    Raises:
        TypeError, ValueError: with the name of the argument, its value and what is allowed.
    """
    if controller is not None and not isinstance(controller, Controller):
        raise TypeError(f"controller must be None or a thermoopt.controllers.Controller, got {controller!r}")
    if controller is not None:
        check_whole([p for group in groups for p in group["params"]])
    if measure_every is not None and (
        isinstance(measure_every, bool) or not isinstance(measure_every, int) or measure_every < 1
    ):
        raise (ValueError if isinstance(measure_every, int) else TypeError)(
            f"measure_every must be None or an integer >= 1, got {measure_every!r}"
        )
    if ema_steps is None:
        return
    if isinstance(ema_steps, bool) or not isinstance(ema_steps, (int, float)):
        raise TypeError(f"ema_steps must be None or a number >= 1, got {ema_steps!r}")
    if not (math.isfinite(ema_steps) and ema_steps >= 1):
        raise ValueError(f"ema_steps must be None or a number >= 1, got {ema_steps!r}")


def check_count(name: str, value: object) -> None:
    """Check that an argument is an integer >= 1.

    Raises:
        TypeError, ValueError: with the name of the argument, its value and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer >= 1, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


INNER = ("optimizer", "opt", "optim", "base", "base_optimizer", "original_optimizer")
"""Attributes under which wrappers hold the optimizer that steps: Accelerate, Lightning, Fabric and DeepSpeed,
fastai, torch's PostLocalSGDOptimizer, schedule-free's wrapper, SAM, Opacus."""

HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "_optimizer_load_state_dict_post_hooks")
"""Where ``torch.optim.Optimizer.__init__`` puts the hooks that an optimizer runs."""


def inner_optimizer(wrapper: object) -> tuple[str, Optimizer] | None:
    """Return the path at which a wrapper holds a torch optimizer, such as ``".opt"``, and that optimizer.

    Returns:
        None if no attribute named in :data:`INNER`, at most three levels deep, holds one.
    """
    here: list[tuple[str, object]] = [("", wrapper)]
    for _ in range(3):
        here = [
            (f"{path}.{name}", getattr(held, name, None))
            for path, held in here
            for name in INNER
            # not what the wrapper's __getattr__ would find in the optimizer
            if name in getattr(held, "__dict__", {}) or isinstance(getattr(type(held), name, None), property)
        ]
        for path, held in here:
            if isinstance(held, Optimizer):
                return path, held
    return None


def check_hookable(optimizer: object) -> None:
    """Check that an optimizer runs step hooks; one that never calls torch's ``__init__`` does not.

    Raises:
        TypeError: with what was given and, if it wraps an optimizer, the path to that optimizer.
    """
    inner = inner_optimizer(optimizer)
    hint = f"; the one that it wraps is its {inner[0]}" if inner else ""
    kind = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        plain = optimizer is None or isinstance(optimizer, (str, int, float))
        what = repr(optimizer) if plain else f"a {type(optimizer).__module__}.{type(optimizer).__qualname__}"
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {what}{hint}")
    if getattr(optimizer, "defaults", {}).get("gradient_release", False):
        raise TypeError(
            f"optimizer must step all its parameters at once, got {kind} with gradient_release=True, which "
            "steps each of them inside backward, so that iterations cannot be told apart"
        )
    hooked = getattr(type(optimizer).step, "hooked", False)  # torch's own mark, set by Optimizer.__init__
    if not hooked or not all(hasattr(optimizer, name) for name in HOOKS):
        raise TypeError(
            f"optimizer must run step hooks, got {kind}, which does not (its __init__ does not call "
            f"torch.optim.Optimizer's, or it is a wrapper){hint}"
        )


def drop_foreign_state(groups: Sequence[dict[str, Any]], key: str) -> None:
    """Take out of groups what others have put there under a key.

    Warns:
        RuntimeWarning: always.
    """
    for group in groups:
        del group[key]
    warnings.warn(
        "param groups hold a 'thermo' entry that this optimizer's load_state_dict did not load: "
        "ZeroRedundancyOptimizer gives every rank the entry of one rank, which has other layers. Averages "
        "and controller start over at the present step; layers sharded by fully_shard keep theirs",
        RuntimeWarning,
        stacklevel=4,
    )


def tell_of_scales(saved: Sequence[Mapping[str, Any]]) -> None:
    """Tell of scales that a controller left in a checkpoint and that no controller will move.

    Args:
        saved: the account of each group in the checkpoint.

    Warns:
        RuntimeWarning: if a scale or a layer factor is not 1.
    """
    scales = [float(group.get(key, 1.0)) for key in ("lr_scale", "wd_scale") for group in saved]
    factors = any((torch.as_tensor(group.get("layer_factors", 1.0)) != 1).any() for group in saved)
    if factors or any(scale != 1 for scale in scales):
        listed = ", ".join(f"{scale:.3g}" for scale in scales[: len(saved)])
        warnings.warn(
            "the checkpoint is from an optimizer with a controller, but this one has none: it keeps the last "
            f"scales for good (lr_scale of its groups: {listed}). Create it with the controller, or, to "
            "train at lr itself, delete 'thermo' from the groups of the state",
            RuntimeWarning,
            stacklevel=2,
        )


def tell_of_missing_moments(steps: int, state: Mapping[Any, Any]) -> None:
    """Tell of a checkpoint of a run that has stepped and in which no parameter has moments.

    Args:
        steps: optimizer steps counted in it, without skipped ones.
        state: the optimizer's, by parameter.

    Warns:
        RuntimeWarning: if that is so.
    """
    if steps > 0 and not state:
        warnings.warn(
            f"the checkpoint counts {steps} steps but holds no moments, so they start from zero. "
            "torch.distributed.checkpoint.load fills in only what a state_dict already has, and that of a "
            "fresh optimizer has no moments: use get_state_dict and set_state_dict "
            "(torch.distributed.checkpoint.state_dict)",
            RuntimeWarning,
            stacklevel=2,
        )


def check_materialized(params: Iterable[Tensor]) -> None:
    """Refuse parameters that have no shape yet.

    Raises:
        ValueError: if some belong to lazy modules that have seen no input.
    """
    if lazy := sum(map(is_lazy, params)):
        raise ValueError(
            f"params must have shapes, got {lazy} of lazy modules that have seen no input: run one batch "
            "through the model first"
        )


def averaging_steps(given: float | None, controller: Controller | None) -> float:
    """Return the length of the readings' average: the given one, else the controller's, else the default."""
    wanted = None if controller is None else controller.ema_steps
    return float(given if given is not None else wanted or EMA_STEPS)


def plain_number(x: Any) -> Any:
    """Return numpy's numbers, and those in a tuple, as Python's; torch.load refuses numpy's in a checkpoint.

    ``lr=numpy.logspace(...)[i]`` brings them into a group, as does a LambdaLR whose law says ``numpy.cos``.
    """
    if isinstance(x, tuple):
        return tuple(map(plain_number, x))
    return x.item() if isinstance(x, np.generic) else x


def check_saved(
    groups: Sequence[Mapping[str, Any]],
    saved: Sequence[Mapping[str, Any]],
    key: str,
    controller: Controller | None,
) -> None:
    """Refuse a checkpoint of parameters in another order, or with something else in place of a number.

    Args:
        groups, saved: the parameter groups, and those of the checkpoint.
        key: of what this library keeps in them: scales, rates at the start, counters, the controller's state.
        controller: the controller that is to go on, if any.

    Raises:
        ValueError: naming what is wrong; nothing has changed then.
    """
    _check_order(groups, saved)
    for i, group in enumerate(saved):
        for name, value in group.get(key, {}).items():
            where = f"state_dict['param_groups'][{i}]['{key}'][{name!r}]"
            several = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0
            if name == "controller":
                if controller is not None:
                    check_saved_controller(controller, from_leaf(value), where)
            elif not several or name in BY_LAYER:
                plain = value.tolist() if isinstance(value, Tensor) else value
                check_numbers(plain, 1.0, where, gaps=name.startswith("loss_"))


def _check_order(groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a checkpoint of the same named parameters in another order: state is loaded by position.

    Raises:
        ValueError: with the first parameter that is out of place; nothing has changed then.
    """
    now, then = ([n for group in side for n in group.get("param_names") or ()] for side in (groups, saved))
    if now != then and sorted(now) == sorted(then):
        a, b = next((a, b) for a, b in zip(now, then, strict=True) if a != b)
        raise ValueError(
            f"state_dict holds this optimizer's parameters in another order: {b!r} where this one has {a!r}. "
            "Build the optimizer with its parameters in the saved order"
        )
