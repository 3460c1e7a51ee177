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
"""Arguments of AdamW, and their names in TrainingArguments."""

SHAPELESS = ("constant", "constant_with_warmup")
"""The Trainer's schedules that leave the shape of the learning rate to the controller."""


def training_steps(args: TrainingArguments, examples: int) -> int:
    """Return how many optimizer steps a Trainer takes: ``max_steps``, or the number in its epochs.

    Args:
        args: the Trainer's arguments.
        examples: length of the training set.

    Raises:
        TypeError, ValueError: unless ``examples`` is an integer >= 1.
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
    """Create the ThermoAdamW that a Trainer's arguments describe, for ``Trainer(optimizers=(this, None))``.

    Learning rate, betas, eps and weight decay come from ``args``; by the Trainer's own rule biases and norms
    do not decay. Layers have the names of the model's parameters.

    Args:
        model: the model passed to the Trainer.
        args: the arguments passed to the Trainer.
        preset: a preset of :func:`thermoopt.autotune`. The shape of the learning rate is then the Trainer's
            schedule (``lr_scheduler_type="linear"`` is its default), or the preset's, down to zero, with a
            schedule without a shape (``"constant"``, ``"constant_with_warmup"``). The preset's warm-up over
            10 % of the run multiplies either. None only measures.
        controller: a custom controller instead of a preset, for one run.
        total_steps: length of the run for the preset; None uses ``args.max_steps``, or the number of steps
            that follows from ``examples``.
        examples: length of the training set, if the run's length is given in epochs.
        by: parameter groups: ``"decay"`` for the Trainer's, named ``decay`` and ``no_decay``; ``"layer"`` or
            ``"type"`` for those of :func:`thermoopt.make_param_groups`, whose parameters without decay form
            a separate group ``<name>.no_decay``.
        options: arguments of :class:`thermoopt.ThermoAdamW`: ``measure_every``, ``ema_steps``, ``backend``,
            ``sinks``.

    Raises:
        TypeError: for an option that belongs in ``args``, and as ThermoAdamW does.
        ValueError: for a preset together with a controller, a preset whose length is unknown or not that of
            the run, an unknown ``by``, and as ThermoAdamW and autotune do.
    """
    if by not in ("decay", "layer", "type"):
        raise ValueError(f"by must be 'decay', 'layer' or 'type', got {by!r}")
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
    """The optimizer class that :func:`thermo_optimizer` gives a Trainer, which calls it with its model.

    Raises:
        TypeError: if called as an optimizer class, as in transformers before 5.
    """

    def __init__(self, *params: Any, **options: Any) -> None:
        if params or options:
            raise TypeError(
                "optimizer_cls_and_kwargs must be called with a model, got parameter groups without names, "
                "as in transformers before 5: there, use Trainer(optimizers=(thermo_adamw(model, args, "
                "...), None))"
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
    """Return the value of ``Trainer(optimizer_cls_and_kwargs=...)`` that makes a :func:`thermo_adamw`.

    For transformers 5 and later; with earlier versions pass :func:`thermo_adamw` as ``optimizers``. ``args``
    are read when the optimizer is created, so that ``hyperparameter_search`` may change them (only with a
    preset, which is created anew for each run; a controller serves one run).

    Args:
        args, preset, controller, total_steps, examples, by, options: as for :func:`thermo_adamw`.

    Raises:
        TypeError, ValueError: as :func:`thermo_adamw` does; errors in a preset and its length at once.
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
            raise TypeError(f"{name} must be set in TrainingArguments ({where}), got {options[name]!r} here")


def _check_length_unused(total_steps: int | None, examples: int | None) -> None:
    for name, value in (("total_steps", total_steps), ("examples", examples)):
        if value is not None:
            raise ValueError(f"{name} must be None without a preset, got {value!r}: only a preset uses it")


def _preset(
    args: TrainingArguments,
    preset: str,
    controller: Controller | None,
    total_steps: int | None,
    examples: int | None,
) -> Controller:
    if controller is not None:
        raise ValueError(
            f"preset and controller cannot be combined, got preset={preset!r} and controller={controller!r}"
        )
    known: int | None = args.max_steps if args.max_steps > 0 else None
    if examples is not None:
        known = training_steps(args, examples)
    if total_steps is None:
        if known is None:
            raise ValueError(
                f"total_steps must be given with preset={preset!r} if the arguments set epochs instead of "
                "max_steps, got None; examples=len(train_dataset) will do, too"
            )
        total_steps = known
    elif known is not None and known != total_steps:
        raise ValueError(
            f"total_steps must be the {known} steps that the Trainer will take, got {total_steps!r}"
        )
    shapeless = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type) in SHAPELESS
    return autotune(total_steps, preset, shape=None if shapeless else "constant")


def _groups(model: nn.Module, weight_decay: float, by: str) -> list[dict[str, Any]]:
    """Return named groups; parameters exempt from decay by the Trainer's rule do not decay."""
    from transformers import Trainer

    rule: Any = Trainer.get_decay_parameter_names
    decaying = set(rule(None, model))  # the method does not use its Trainer
    if by == "decay":
        # in the model's order, as in the Trainer's own groups and therefore in their checkpoints
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
            f"model must have at least one trainable parameter, got a {type(model).__name__} with none"
        )
    return out
