"""From a trainer's wrappers to the optimizer that steps."""

from __future__ import annotations

from torch.optim import Optimizer

from thermoopt.adamw import inner_optimizer

__all__ = ["unwrap"]


def unwrap(optimizer: Optimizer) -> Optimizer:
    """Return the torch optimizer whose ``step`` moves the parameters, below every wrapper around it.

    Wrappers are optimizers that hold another one: as ``.optimizer`` (Accelerate's AcceleratedOptimizer, which
    passes on neither hooks nor attributes like ``reading`` and ``controller``, and Lightning's
    LightningOptimizer, which takes on the class of what it holds, so that ``isinstance`` cannot tell), as
    ``.original_optimizer`` (Opacus' DPOptimizer), or as ``.optim`` (torch's PostLocalSGDOptimizer).

    An object that is not an optimizer but holds one (fastai's OptimWrapper as ``.opt``, schedule-free's
    wrapper as ``.base``, DeepSpeed's engine as ``.optimizer.optimizer``) is unwrapped, too.

    Raises:
        TypeError: if it neither is nor holds an optimizer.
    """
    if not isinstance(optimizer, Optimizer):
        inner = inner_optimizer(optimizer)
        if inner is None:
            raise TypeError(f"optimizer must be or hold a torch.optim.Optimizer, got {optimizer!r}")
        optimizer = inner[1]
    while True:
        names = ["optimizer", "original_optimizer"]
        if not hasattr(optimizer, "_optimizer_step_pre_hooks"):  # ZeRO has them; its .optim steps a part only
            names.append("optim")
        held = (getattr(optimizer, name, None) for name in names)
        inner_one = next((inner for inner in held if isinstance(inner, Optimizer)), None)
        if inner_one is None:
            return optimizer
        optimizer = inner_one
