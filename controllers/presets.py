"""Ready-made chains of controllers."""

from __future__ import annotations

from thermoopt.controllers.barostat import Barostat
from thermoopt.controllers.cooling import Cooling
from thermoopt.controllers.thermostat import Thermostat
from thermoopt.controllers.wrappers import Chain

__all__ = ["PRESETS", "autotune"]

PRESETS = ("default", "finetune", "respect_lr")
"""Names of the presets."""

FINETUNE_KAPPA = 0.03
"""Displacement budget of fine-tuning, in units of the weights' own rms. Measured by this project: a
pre-trained GPT on a small text does best where it moves about that far (angular step 6e-4 at 400 steps)."""

RESPECT = 4.0
"""How far ``respect_lr`` may go from the user's lr, up and down: about the error of a hand-tuned lr."""


def autotune(total_steps: int | None = None, preset: str = "default", *, shape: str = "linear") -> Chain:
    """Return the controllers that take the place of a tuned learning rate and a schedule.

    A chain of :class:`Thermostat` (the amplitude), :class:`Barostat` (weight decay) and :class:`Cooling`
    (warm-up over 5 % of the run and the shape). ``ThermoAdamW(model.named_parameters(),
    controller=autotune(T))`` needs no lr.

    Args:
        total_steps: length of the run in optimizer steps. None is anytime: the amplitude is held until
            ``chain.cool_now(steps)`` starts the quench.
        preset: ``"default"`` finds the rate from scratch; ``"finetune"`` starts from a small displacement
            budget; ``"respect_lr"`` takes the optimizer's lr as centre and moves within a factor of 4, all
            layers of a group alike.
        shape: of the cooling (:data:`thermoopt.controllers.cooling.SHAPES`).

    Raises:
        ValueError: for values out of range; the message names the argument.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}; allowed are {', '.join(map(repr, PRESETS))}")
    if preset == "finetune":
        thermostat = Thermostat("diffusion", total_steps=total_steps, kappa=FINETUNE_KAPPA)
    elif preset == "respect_lr":
        bounds = (1 / RESPECT, RESPECT)
        thermostat = Thermostat("diffusion", total_steps=total_steps, layers=False, lr_scale=bounds)
    else:
        thermostat = Thermostat("diffusion", total_steps=total_steps)
    return Chain(thermostat, Barostat(), Cooling(total_steps, "constant" if total_steps is None else shape))
