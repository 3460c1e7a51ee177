"""The small network that every optimizer trains, and one run of it."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Net", "Run", "batch", "train"]

INPUTS, HIDDEN, CLASSES, ROWS = 16, 32, 8, 64


class Net(nn.Module):
    """Three linear layers with a layer norm: matrices, vectors, a scale-invariant layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(INPUTS, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.mid = nn.Linear(HIDDEN, HIDDEN)
        self.out = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[rows, CLASSES]``."""
        x = nn.functional.gelu(self.inp(x))
        return self.out(nn.functional.gelu(self.mid(self.norm(x))))


@functools.cache
def batch(step: int) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of a step: a linear teacher with noise, new rows every step."""
    g = torch.Generator().manual_seed(1000 + step)
    teacher = torch.randn(INPUTS, CLASSES, generator=torch.Generator().manual_seed(7))
    x = torch.randn(ROWS, INPUTS, generator=g)
    return x, (x @ teacher + 0.5 * torch.randn(ROWS, CLASSES, generator=g)).argmax(1)


@dataclass
class Run:
    """The result of a run.

    Attributes:
        model, optimizer: as they are at its end.
        losses: of every step, before it.
        rewrites: whether a step wrote another lr into a group.
        extra: what ``attach`` returned.
    """

    model: nn.Module
    optimizer: Optimizer
    losses: list[float] = field(default_factory=list)
    extra: Any = None
    rewrites: bool = False

    @property
    def final(self) -> float:
        """Mean loss of the last 20 steps."""
        return float(np.mean(self.losses[-20:]))


Make = Callable[[nn.Module], Optimizer]


def train(
    make: Make,
    steps: int,
    *,
    closure: bool = False,
    create_graph: bool = False,
    attach: Callable[[nn.Module, Optimizer], Any] | None = None,
    before: Callable[[Run, int], None] | None = None,
    after: Callable[[Run, int, Tensor], None] | None = None,
) -> Run:
    """Train the network once.

    Args:
        make: makes the optimizer.
        steps: to take.
        closure: hand the loss to ``step`` as a closure; else backward comes first.
        create_graph: for optimizers that differentiate gradients.
        attach: called once, before the first step.
        before: called once a step's gradients are computed.
        after: called after each step, with its loss.
    """
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - optimizers draw from the global generator
    torch.manual_seed(0)
    model = Net()
    torch.manual_seed(1)
    run = Run(model, make(model))
    if callable(switch := getattr(run.optimizer, "train", None)):
        switch()
    run.extra = None if attach is None else attach(model, run.optimizer)
    for t in range(steps):
        x, y = batch(t)

        def evaluate(t: int = t, x: Tensor = x, y: Tensor = y) -> Tensor:
            run.optimizer.zero_grad()
            with torch.enable_grad():  # not every step calls its closure
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward(create_graph=create_graph)
            if before is not None:
                before(run, t)
            return loss

        lrs = _lrs(run.optimizer)
        if closure:
            given: Any = run.optimizer.step(evaluate)  # type: ignore[arg-type]  # torch wants a float of it
        else:
            given = evaluate()
            run.optimizer.step()
        run.rewrites |= lrs != _lrs(run.optimizer)
        loss = torch.as_tensor(float("nan") if given is None else given).detach()
        run.losses.append(float(loss))
        if after is not None:
            after(run, t, loss)
    return run


def _lrs(optimizer: Optimizer) -> list[float | None]:
    lrs = [group.get("lr") for group in getattr(optimizer, "param_groups", ())]
    return [None if lr is None else float(lr) for lr in lrs]
