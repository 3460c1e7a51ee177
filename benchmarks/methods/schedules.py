r"""The schedules compared: warm-up, then a shape in u, the completed share of the rest of the run.

They do not use this project's cooling, which is one of the methods compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR

from thermoopt.benchmarks.methods.base import WARMUP, Job

__all__ = [
    "constant",
    "cosine",
    "cosine_to_tenth",
    "factor",
    "falling",
    "inverse_sqrt",
    "inverse_time",
    "linear",
    "scheduled",
    "wsd",
]

Shape = Callable[[float], float]

TAIL = 0.2
"""Share of the run that the decay of ``wsd`` takes (arXiv 2405.18392)."""


def constant(u: float) -> float:
    """Return 1."""
    return 1.0


def linear(u: float) -> float:
    """Return 1 - u: to zero (arXiv 2502.15938)."""
    return 1 - u


def cosine(u: float) -> float:
    """Return (1 + cos pi u)/2: to zero (arXiv 1608.03983)."""
    return (1 + math.cos(math.pi * u)) / 2


def cosine_to_tenth(u: float) -> float:
    """Return 0.1 + 0.9 (1 + cos pi u)/2: to a tenth, as language models are trained (arXiv 2203.15556)."""
    return 0.1 + 0.9 * cosine(u)


def wsd(u: float) -> float:
    """Return 1, then 1 - sqrt(share done) over the last fifth of the whole run (arXiv 2405.18392)."""
    tail = TAIL / (1 - WARMUP)
    return 1.0 if u <= 1 - tail else 1 - math.sqrt((u - (1 - tail)) / tail)


def inverse_time(u: float) -> float:
    """Return w/(share of the run done), w being the share of warm-up: 1/t from there on, 1/20 at the end."""
    return WARMUP / (WARMUP + (1 - WARMUP) * u)


def inverse_sqrt(u: float) -> float:
    """Return the root of :func:`inverse_time`: the schedule of arXiv 1706.03762, 0.22 at the end."""
    return math.sqrt(inverse_time(u))


def factor(shape: Shape, steps: int, warmup: int) -> Callable[[int], float]:
    r"""Return the factor on lr of step n, counted from 0.

    .. math:: (n+1)/w \quad (n<w),\qquad \mathrm{shape}\bigl((n-w)/(T-w)\bigr)
    """

    def at(n: int) -> float:
        return (n + 1) / warmup if n < warmup else shape(min(1.0, (n - warmup) / max(1, steps - warmup)))

    return at


def scheduled(optimizer: torch.optim.Optimizer, shape: Shape, job: Job) -> LambdaLR:
    """Return warm-up and a shape as a scheduler of torch's."""
    return LambdaLR(optimizer, factor(shape, job.steps, job.warmup))


def falling(optimizer: torch.optim.Optimizer, job: Job) -> LambdaLR:
    """Return linear-to-zero without warm-up, for optimizers that find their own start."""
    return LambdaLR(optimizer, lambda step: linear(min(1.0, step / job.steps)))
