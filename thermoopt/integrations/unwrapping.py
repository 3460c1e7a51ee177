"""From what a trainer holds to the optimizer that steps."""

from __future__ import annotations

from torch.optim import Optimizer

__all__ = ["unwrap"]


def unwrap(optimizer: Optimizer) -> Optimizer:
    """Return the torch optimizer whose ``step`` moves the parameters, below every wrapper around it.

    Wrappers are optimizers that hold another one as ``.optimizer``: Accelerate's AcceleratedOptimizer, which
    hands on neither hooks nor attributes like ``reading`` and ``controller``, and Lightning's
    LightningOptimizer, which takes on the class of what it holds, so that ``isinstance`` does not tell it.

    Raises:
        TypeError: if it is no optimizer.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is {optimizer!r}; allowed is a torch.optim.Optimizer")
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer
