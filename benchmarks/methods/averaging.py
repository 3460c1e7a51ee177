"""Optimizers that are evaluated at averaged weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thermoopt.benchmarks.methods.base import Setup

__all__ = ["judged_at_average"]


class _Judging:
    """Swaps weights for evaluation and restores them bit for bit: a package's own way back rounds."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._kept: list[Tensor] = []

    @property
    def _params(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def before(self) -> None:
        """Put the averaged weights into the model."""
        if not self._kept:
            self._kept = [p.detach().clone() for p in self._params]
            self._optimizer.eval()

    @torch.no_grad()
    def after(self) -> None:
        """Restore the weights at which gradients are taken."""
        self._optimizer.train()
        for p, kept in zip(self._params, self._kept, strict=True):
            p.copy_(kept)
        self._kept = []


def judged_at_average(optimizer: Any, report: Callable[[Tensor], Any] = lambda loss: None) -> Setup:
    """Return the set-up of an optimizer whose ``eval()`` puts averages into the model."""
    judging = _Judging(optimizer)
    return Setup(optimizer, before_judging=judging.before, after_judging=judging.after, report=report)
