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
    "constant": (constant, "lr held"),
    "linear": (linear, "linear to zero"),
    "cosine": (cosine, "cosine to zero"),
    "cosine 0.1": (cosine_to_tenth, "cosine to a tenth of lr"),
    "wsd": (wsd, "lr held, then 1 - sqrt over the last 20 % of the run"),
    "inverse-sqrt": (inverse_sqrt, "lr falling as the inverse root of time, to 0.22 of it"),
    "inverse-time": (inverse_time, "lr falling as 1/t, to a twentieth of it"),
}

BASELINES = [
    *(
        Method(
            f"adamw {name}",
            f"torch's AdamW, fused, warm-up over 5 %, {words}; lr 1e-3, decay 0.01",
            _with(adamw, shape),
        )
        for name, (shape, words) in _ADAMW.items()
    ),
    Method(
        "sgd cosine",
        "torch's SGD, fused, momentum 0.9, warm-up over 5 %, cosine to zero; lr 0.1, coupled decay 5e-4",
        _with(sgd, cosine),
        lr=SGD_LR,
        decay=SGD_DECAY,
    ),
    Method(
        "schedule-free",
        "AdamWScheduleFree of its authors' package, foreach, its own warm-up over 5 %, judged at the "
        "averaged weights, BatchNorm statistics as trained; lr 2.5e-3 (its default), decay 0.01",
        _schedule_free,
        needs="schedulefree",
        lr=2.5e-3,
    ),
    Method(
        "prodigy",
        "Prodigy of its authors' package, no lr, no warm-up, linear to zero (their advice: a schedule that "
        "falls); decoupled decay 0.01",
        _prodigy,
        ("decay",),
        needs="prodigyopt",
        lr=1.0,
    ),
]
"""Every baseline without feedback from the loss."""
