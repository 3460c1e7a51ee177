"""What is compared: each method makes an optimizer and perhaps a schedule for a model and a length of run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from thermoopt.benchmarks.workloads.task import require
from thermoopt.controllers import Chain, Controller, Cooling, Thermostat
from torch import Tensor, nn

from thermoopt import ThermoAdamW, autotune

__all__ = ["LRS", "METHODS", "Method", "Setup"]

LRS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""The grid of learning rates, two a decade."""

WARMUP = 0.05  # share of the run, as in this project's measurements of laws
WEIGHT_DECAY = 0.01  # torch's default, for every method


@dataclass(frozen=True)
class Setup:
    """What a run steps.

    Attributes:
        optimizer: stepped once a batch.
        schedule: stepped after it; None where the optimizer has its own.
        before_judging: called before the final validation.
        report: told the training loss before the step.
    """

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    before_judging: Callable[[], Any] = lambda: None
    report: Callable[[Tensor], Any] = lambda loss: None


@dataclass(frozen=True)
class Method:
    """A method and the learning rates it is run at: none for those that need none."""

    build: Callable[[nn.Module, float, int], Setup]
    lrs: tuple[float, ...] = ()


def _linear(u: float) -> float:
    return 1 - u


def _cosine(u: float) -> float:
    return (1 + math.cos(math.pi * u)) / 2


def scheduled(shape: Callable[[float], float], steps: int) -> Callable[[int], float]:
    """Warm up linearly over 5 %, then follow a shape to the end."""
    warmup = max(1, round(WARMUP * steps))

    def factor(step: int) -> float:
        return (step + 1) / warmup if step < warmup else shape(min(1.0, (step - warmup) / (steps - warmup)))

    return factor


def _adamw(shape: Callable[[float], float]) -> Callable[[nn.Module, float, int], Setup]:
    def build(model: nn.Module, lr: float, steps: int) -> Setup:
        optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=WEIGHT_DECAY, fused=True)
        return Setup(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, scheduled(shape, steps)))

    return build


def _prodigy(model: nn.Module, lr: float, steps: int) -> Setup:
    prodigy = require("prodigyopt", "prodigyopt").Prodigy
    optimizer = prodigy(model.parameters(), lr=1.0, weight_decay=WEIGHT_DECAY)
    # its authors' advice: no warm-up, a schedule that falls; linear as for all others
    return Setup(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _linear(step / steps)))


def _schedule_free(model: nn.Module, lr: float, steps: int) -> Setup:
    schedule_free = require("schedulefree", "schedulefree").AdamWScheduleFree
    warmup = max(1, round(WARMUP * steps))
    optimizer = schedule_free(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY, warmup_steps=warmup)
    optimizer.train()
    return Setup(optimizer, None, optimizer.eval)


def _controlled(controller: Callable[[int], Controller]) -> Callable[[nn.Module, float, int], Setup]:
    def build(model: nn.Module, lr: float, steps: int) -> Setup:
        given = {} if math.isnan(lr) else {"lr": lr}
        optimizer = ThermoAdamW(
            model.named_parameters(), weight_decay=WEIGHT_DECAY, controller=controller(steps), **given
        )
        return Setup(optimizer, report=optimizer.report_loss)

    return build


def _law(name: str) -> Callable[[int], Controller]:
    """A law alone with warm-up and linear cooling: what autotune is without its barostat."""
    return lambda steps: Chain(Thermostat(name, total_steps=steps), Cooling(steps, "linear"))


METHODS: dict[str, Method] = {
    "adamw linear": Method(_adamw(_linear), LRS),
    "adamw cosine": Method(_adamw(_cosine), LRS),
    "prodigy": Method(_prodigy),
    "schedule-free": Method(_schedule_free, (2.5e-3,)),  # its package's default rate
    "autotune": Method(_controlled(autotune)),
    "respect_lr": Method(_controlled(lambda steps: autotune(steps, "respect_lr")), LRS),
    "law diffusion": Method(_controlled(_law("diffusion"))),
    "law angular": Method(_controlled(_law("angular"))),
    "law distance": Method(_controlled(_law("distance"))),
    "law polyak": Method(_controlled(_law("polyak"))),
    "law coherence": Method(_controlled(_law("coherence")), LRS),  # a brake on the lr that is given
}
"""Every method by name."""
