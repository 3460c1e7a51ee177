"""Optimizers and schedules in common use, as their packages provide them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import torch

from thermoopt.benchmarks.methods.averaging import judged_at_average
from thermoopt.benchmarks.methods.base import Job, Method, Setup
from thermoopt.benchmarks.methods.schedules import (
    constant,
    cosine,
    cosine_to_tenth,
    falling,
    inverse_sqrt,
    inverse_time,
    linear,
    scheduled,
    wsd,
)

__all__ = ["BASELINES", "MOMENTUM", "SGD_DECAY", "SGD_LR", "adamw", "sgd"]

MOMENTUM, SGD_LR, SGD_DECAY = 0.9, 0.1, 5e-4
"""SGD as used for image models (arXiv 1605.07146): its decay is coupled, so AdamW's 0.01 would mean something
else."""


def adamw(job: Job) -> torch.optim.AdamW:
    """Return torch's fused AdamW, its fastest."""
    return torch.optim.AdamW(job.model.parameters(), job.lr, weight_decay=job.decay, fused=True)


def sgd(job: Job) -> torch.optim.SGD:
    """Return torch's fused SGD with momentum."""
    return torch.optim.SGD(
        job.model.parameters(), job.lr, momentum=MOMENTUM, weight_decay=job.decay, fused=True
    )


def _with(
    optimizer: Callable[[Job], torch.optim.Optimizer], shape: Callable[[float], float]
) -> Callable[[Job], Setup]:
    def make(job: Job) -> Setup:
        made = optimizer(job)
        return Setup(made, scheduled(made, shape, job))

    return make


def _prodigy(job: Job) -> Setup:
    from prodigyopt import Prodigy

    with contextlib.redirect_stdout(io.StringIO()):  # it prints which decay it uses
        optimizer = Prodigy(job.model.parameters(), lr=1.0, weight_decay=job.decay)
    return Setup(optimizer, falling(optimizer, job))


def _schedule_free(job: Job) -> Setup:
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(
        job.model.parameters(), lr=job.lr, weight_decay=job.decay, warmup_steps=job.warmup
    )
    optimizer.train()
    return judged_at_average(optimizer)


_ADAMW = {
    "constant": (constant, "then constant"),
    "linear": (linear, "then linear to zero"),
    "cosine": (cosine, "then cosine to zero"),
    "cosine 0.1": (cosine_to_tenth, "then cosine to a tenth of lr"),
    "wsd": (wsd, "then constant, then 1 - sqrt over the last 20 % of the run"),
    "inverse-sqrt": (inverse_sqrt, "then falling as one over the square root of time, to 0.22 of lr"),
    "inverse-time": (inverse_time, "then falling as 1/t, to a twentieth of lr"),
}

BASELINES = [
    *(
        Method(
            f"adamw {name}",
            f"torch's fused AdamW, warm-up over 5 % of the run, {words}; lr 1e-3, decay 0.01",
            _with(adamw, shape),
        )
        for name, (shape, words) in _ADAMW.items()
    ),
    Method(
        "sgd cosine",
        "torch's fused SGD, momentum 0.9, warm-up over 5 %, then cosine to zero; lr 0.1, coupled decay 5e-4",
        _with(sgd, cosine),
        lr=SGD_LR,
        decay=SGD_DECAY,
    ),
    Method(
        "schedule-free",
        "AdamWScheduleFree from its authors' package, foreach, with its own warm-up over 5 %, evaluated at "
        "the averaged weights, with BatchNorm statistics as trained; lr 2.5e-3 (its default), decay 0.01",
        _schedule_free,
        needs="schedulefree",
        lr=2.5e-3,
    ),
    Method(
        "prodigy",
        "Prodigy from its authors' package, no lr, no warm-up, linear to zero (its authors advise a falling "
        "schedule); decoupled decay 0.01",
        _prodigy,
        ("decay",),
        needs="prodigyopt",
        lr=1.0,
    ),
]
"""Every baseline without feedback from the loss."""
