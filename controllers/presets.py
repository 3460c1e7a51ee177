"""Ready-made chains of controllers."""

from __future__ import annotations

from thermoopt.controllers.barostat import Barostat
from thermoopt.controllers.cooling import Cooling, check_total_steps
from thermoopt.controllers.thermostat import Thermostat
from thermoopt.controllers.wrappers import Chain

__all__ = ["PRESETS", "autotune"]

PRESETS = ("default", "finetune", "respect_lr")
"""Names of the presets."""

FINETUNE_KAPPA = 0.05
"""Initial displacement for fine-tuning, in units of the weights' own size. Measured by this project on a
BERT: over 60 steps 0.1 learns nothing on one task where 0.02 and 0.04 pass AdamW at 5e-5; on another, on
which it was not chosen, 0.03 is too slow in full and staged fine-tuning (1.85 against 1.69 with 0.05). At 300
steps 0.03 and 0.1 do not differ."""

WARMUP = 0.1
"""Share of the run that warms up. Measured by this project: 5 % leaves transformers 3 to 10 % worse at 300
to 1200 steps, and a start that is too high is forgiven while its rate is low."""

RESPECT = 4.0
"""Factor by which ``respect_lr`` may move up or down from the user's lr: the error of a hand-tuned one."""


def autotune(total_steps: int | None = None, preset: str = "default", *, shape: str | None = None) -> Chain:
    """Return the controllers that replace a tuned learning rate and a schedule.

    A chain of :class:`Thermostat` (the amplitude), :class:`Barostat` (weight decay) and :class:`Cooling`
    (warm-up over 10 % of the run and the shape). ``ThermoAdamW(model.named_parameters(),
    controller=autotune(T))`` needs no lr.

    Args:
        total_steps: length of the run in optimizer steps, at least 1. None for a run without a fixed end: the
            amplitude is held until ``chain.cool_now(steps)`` starts the quench.
        preset: ``"default"`` finds the rate from scratch; ``"finetune"`` starts from a small displacement
            budget; ``"respect_lr"`` stays within a factor of 4 of the optimizer's lr, with the same factor
            for all layers of a group, unless that lr moves a layer by more than a quarter of its size a step.
        shape: shape of the cooling (:data:`thermoopt.controllers.cooling.SHAPES`); None is the preset's:
            ``"trapezoid"`` for ``"default"``, which starts low and is still finding its rate while a linear
            shape already falls, and ``"linear"`` for the others.

    Raises:
        TypeError, ValueError: for values out of range; the message names the argument.
    """
    check_total_steps(total_steps)
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(map(repr, PRESETS))}, got {preset!r}")
    if preset == "finetune":
        thermostat = Thermostat("bounded_diffusion", total_steps=total_steps, kappa=FINETUNE_KAPPA)
    elif preset == "respect_lr":
        bounds = (1 / RESPECT, RESPECT)
        thermostat = Thermostat("bounded_diffusion", total_steps=total_steps, layers=False, lr_scale=bounds)
    else:
        thermostat = Thermostat(total_steps=total_steps)
    if shape is None:
        shape = "trapezoid" if preset == "default" else "linear"
    cooling = Cooling(
        total_steps, "constant" if total_steps is None else shape, None if total_steps is None else WARMUP
    )
    return Chain(thermostat, Barostat(), cooling)
