"""ThermoAdamW for a Hugging Face Trainer, set up by its TrainingArguments."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import nn

from thermoopt.adamw import ThermoAdamW, check_count
from thermoopt.controllers import Controller, autotune
from thermoopt.param_groups import make_param_groups

if TYPE_CHECKING:
    from transformers import TrainingArguments

__all__ = ["OptimizerFactory", "thermo_adamw", "thermo_optimizer", "training_steps"]

FROM_ARGS = {
    "lr": "learning_rate",
    "betas": "adam_beta1 and adam_beta2",
    "eps": "adam_epsilon",
    "weight_decay": "weight_decay",
}
"""Arguments of AdamW and where TrainingArguments have them."""

SHAPELESS = ("constant", "constant_with_warmup")
"""Schedules of Trainer that leave the shape of the rate over the run to the controller."""


def training_steps(args: TrainingArguments, examples: int) -> int:
    """Return how many optimizer steps a Trainer takes: ``max_steps``, or what the epochs come to.

    Args:
        args: of the Trainer.
        examples: length of the training set.

    Raises:
        TypeError, ValueError: unless ``examples`` is a whole number from 1.
    """
    check_count("examples", examples)
    if args.max_steps > 0:
        return args.max_steps
    size, processes = args.train_batch_size, args.world_size
    if getattr(args.accelerator_config, "split_batches", False):
        processes = 1  # a batch is divided among the processes, not one given to each
    if args.dataloader_drop_last:
        batches = examples // size // processes
    else:
        batches = math.ceil(math.ceil(examples / size) / processes)
    steps = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return math.ceil(args.num_train_epochs * steps)


def thermo_adamw(
    model: nn.Module,
    args: TrainingArguments,
    *,
    preset: str | None = None,
    controller: Controller | None = None,
    total_steps: int | None = None,
    examples: int | None = None,
    by: str = "decay",
    **options: Any,
) -> ThermoAdamW:
    """Make the ThermoAdamW that a Trainer's arguments describe, for ``Trainer(optimizers=(this, None))``.

    Learning rate, betas, eps and weight decay are those of ``args``; biases and norms do not decay, by
    Trainer's own rule. Layers have the names of the model's parameters.

    Args:
        model: the model that the Trainer gets.
        args: likewise.
        preset: of :func:`thermoopt.autotune`. The run's shape then is Trainer's schedule where that has one
            (``lr_scheduler_type="linear"`` is Trainer's default) and the preset's, linear to zero, where it
            has none (``"constant"``, ``"constant_with_warmup"``). The preset's warm-up, over 5 % of the run,
            multiplies either. None measures only.
        controller: one of your own instead of a preset, for one run.
        total_steps: length of the run for the preset; None takes ``args.max_steps``, or what ``examples``
            come to.
        examples: length of the training set, where epochs say how long the run is.
        by: groups: ``"decay"``, those of Trainer, named ``decay`` and ``no_decay``; ``"layer"`` or
            ``"type"``, those of :func:`thermoopt.make_param_groups`, where what does not decay of a group
            that does is a group ``<name>.no_decay`` beside it.
        options: of :class:`thermoopt.ThermoAdamW`: ``measure_every``, ``ema_steps``, ``backend``, ``sinks``.

    Raises:
        TypeError: for an option that ``args`` speak of, and as ThermoAdamW does.
        ValueError: for a preset beside a controller, a preset whose length is not known or is not the run's,
            an unknown ``by``, and as ThermoAdamW and autotune do.
    """
    if by not in ("decay", "layer", "type"):
        raise ValueError(f"by is {by!r}; allowed are 'decay', 'layer' and 'type'")
    _check_options(options)
    if preset is None:
        _check_length_unused(total_steps, examples)
    else:
        controller = _preset(args, preset, controller, total_steps, examples)
    return ThermoAdamW(
        _groups(model, args.weight_decay, by),
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
        controller=controller,
        **options,
    )


class OptimizerFactory:
    """What :func:`thermo_optimizer` has a Trainer call with its model.

    Raises:
        TypeError: when it is called as an optimizer class, as transformers before 5 does.
    """

    def __init__(self, *params: Any, **options: Any) -> None:
        if params or options:
            raise TypeError(
                "optimizer_cls_and_kwargs was called with parameter groups that carry no names, as "
                "transformers before 5 does; there, give "
                "Trainer(optimizers=(thermo_adamw(model, args, ...), None))"
            )

    def __call__(self, model: nn.Module, **options: Any) -> ThermoAdamW:
        """Make the optimizer of a model."""
        return thermo_adamw(model, **options)


def thermo_optimizer(
    args: TrainingArguments,
    *,
    preset: str | None = None,
    controller: Controller | None = None,
    total_steps: int | None = None,
    examples: int | None = None,
    by: str = "decay",
    **options: Any,
) -> tuple[type[OptimizerFactory], dict[str, Any]]:
    """Return what ``Trainer(optimizer_cls_and_kwargs=...)`` takes to make :func:`thermo_adamw` of its model.

    From transformers 5 on; earlier ones take :func:`thermo_adamw` as ``optimizers``. ``args`` are read when
    the optimizer is made, so that ``hyperparameter_search`` may change them (with a preset, which is made
    anew; a controller is for one run).

    Args:
        args, preset, controller, total_steps, examples, by, options: as for :func:`thermo_adamw`.

    Raises:
        TypeError, ValueError: as :func:`thermo_adamw` does, for a preset and its length at once.
    """
    _check_options(options)
    if preset is not None:
        _preset(args, preset, controller, total_steps, examples)
    else:
        _check_length_unused(total_steps, examples)
    given = {
        "preset": preset,
        "controller": controller,
        "total_steps": total_steps,
        "examples": examples,
        "by": by,
    }
    return OptimizerFactory, {"args": args, **given, **options}


def _check_options(options: dict[str, Any]) -> None:
    for name, where in FROM_ARGS.items():
        if name in options:
            raise TypeError(
                f"{name} is {options[name]!r}; allowed is to set it in TrainingArguments: {where}"
            )


def _check_length_unused(total_steps: int | None, examples: int | None) -> None:
    for name, value in (("total_steps", total_steps), ("examples", examples)):
        if value is not None:
            raise ValueError(
                f"{name} is {value!r} without a preset, which alone makes use of it; allowed is None"
            )


def _preset(
    args: TrainingArguments,
    preset: str,
    controller: Controller | None,
    total_steps: int | None,
    examples: int | None,
) -> Controller:
    if controller is not None:
        raise ValueError(
            f"preset is {preset!r} beside a controller {controller!r}; allowed is one of the two"
        )
    known: int | None = args.max_steps if args.max_steps > 0 else None
    if examples is not None:
        known = training_steps(args, examples)
    if total_steps is None:
        if known is None:
            raise ValueError(
                f"preset is {preset!r} and total_steps is None, while the arguments have epochs, not "
                "max_steps; allowed is to give total_steps, or examples=len(train_dataset)"
            )
        total_steps = known
    elif known is not None and known != total_steps:
        raise ValueError(
            f"total_steps is {total_steps!r}, but the Trainer will take {known}; allowed is that"
        )
    shapeless = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type) in SHAPELESS
    return autotune(total_steps, preset, shape="linear" if shapeless else "constant")


def _groups(model: nn.Module, weight_decay: float, by: str) -> list[dict[str, Any]]:
    """Named groups, of which what Trainer's rule spares does not decay."""
    from transformers import Trainer

    rule: Any = Trainer.get_decay_parameter_names
    decaying = set(rule(None, model))  # it makes no use of the Trainer
    if by == "decay":
        # in the model's order, which is that of Trainer's own groups and so of their checkpoints
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        parts = [("decay", named), ("no_decay", named)]
    else:
        parts = []
        for group in make_param_groups(model, by=by):
            named = list(zip(group["param_names"], group["params"], strict=True))
            mixed = len({name in decaying for name, _ in named}) == 2
            parts += [(group["name"], named), (group["name"] + ".no_decay" * mixed, named)]
    out = []
    for i, (name, named) in enumerate(parts):
        decays = i % 2 == 0
        members = [(n, p) for n, p in named if (n in decaying) is decays]
        if members:
            names, params = zip(*members, strict=True)
            decay = weight_decay if decays else 0.0
            group = {"params": list(params), "param_names": list(names), "name": name, "weight_decay": decay}
            out.append(group)
    if not out:
        raise ValueError(
            f"model is a {type(model).__name__} without trainable parameters; allowed is one with"
        )
    return out
