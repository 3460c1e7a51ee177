"""Methods without a learning rate to choose: they find it, or use one for everything."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from thermoopt.benchmarks.methods.averaging import judged_at_average
from thermoopt.benchmarks.methods.base import Job, Method, Setup
from thermoopt.benchmarks.methods.schedule_free_plus import ScheduleFreePlus
from thermoopt.benchmarks.methods.schedules import cosine, factor, falling, linear, scheduled

__all__ = ["FIXED_LR", "LR_FREE"]

DECAY_ONLY = ("decay",)

FIXED_LR = 3e-2
"""The rate, of seven, with the lowest geometric mean over the development workloads of ``families``."""

NADAMW_LR, NADAMW_BETAS, NADAMW_DECAY, NADAMW_WARMUP = 1.75e-3, (0.9327, 0.9955), 0.0812, 0.02
"""AlgoPerf's setting for all its workloads alike, with a cosine to zero (its self-tuning baseline, 2024)."""

NESTEROV = 1e4
"""Decay of torch's momentum schedule that keeps it constant: NAdam as in arXiv 1910.05446, table 1."""


def _fixed_adamw(job: Job) -> Setup:
    optimizer = torch.optim.AdamW(job.model.parameters(), job.lr, weight_decay=job.decay, fused=True)
    return Setup(optimizer, scheduled(optimizer, linear, job))


def _fixed_nadamw(job: Job) -> Setup:
    optimizer = torch.optim.NAdam(
        job.model.parameters(),
        job.lr,
        NADAMW_BETAS,
        weight_decay=job.decay,
        momentum_decay=NESTEROV,
        decoupled_weight_decay=True,
    )
    warmup = max(1, round(NADAMW_WARMUP * job.steps))
    return Setup(optimizer, LambdaLR(optimizer, factor(cosine, job.steps, warmup)))


def _dadapt(job: Job) -> Setup:
    from dadaptation import DAdaptAdam

    optimizer = DAdaptAdam(job.model.parameters(), lr=1.0, weight_decay=job.decay, decouple=True)
    return Setup(optimizer, falling(optimizer, job))


def _momo(job: Job) -> Setup:
    from momo import MomoAdam

    class Told(MomoAdam):
        """Step with the reported loss."""

        reported: Tensor

        def report(self, loss: Tensor) -> None:
            self.reported = loss.detach()

        def step(self) -> None:
            super().step(loss=self.reported)

    optimizer = Told(job.model.parameters(), lr=job.lr, weight_decay=job.decay)
    return Setup(optimizer, report=optimizer.report)


def _schedule_free_plus(job: Job) -> Setup:
    optimizer = ScheduleFreePlus(job.model.parameters(), job.steps, job.warmup, weight_decay=job.decay)
    return judged_at_average(optimizer, optimizer.report)


LR_FREE = [
    Method(
        "adamw fixed",
        f"torch's fused AdamW, warm-up over 5 %, then linear to zero, at {FIXED_LR:g} on every workload, "
        "the rate with the lowest geometric mean over the development workloads of `families`; decay 0.01",
        _fixed_adamw,
        DECAY_ONLY,
        lr=FIXED_LR,
    ),
    Method(
        "nadamw fixed",
        "torch's NAdam with decoupled decay and constant momentum, with AlgoPerf's setting on every "
        "workload (arXiv 2505.24005): lr 1.75e-3, betas 0.9327 and 0.9955; decay 0.0812, warm-up over 2 %, "
        "then cosine to zero",
        _fixed_nadamw,
        DECAY_ONLY,
        lr=NADAMW_LR,
        decay=NADAMW_DECAY,
    ),
    Method(
        "dadapt-adam",
        "DAdaptAdam from its authors' package, no lr, no warm-up, linear to zero like Prodigy; decoupled "
        "decay 0.01",
        _dadapt,
        DECAY_ONLY,
        needs="dadaptation",
        lr=1.0,
    ),
    Method(
        "momo-adam",
        "MoMo-Adam from its authors' package, with the loss reported, lower bound 0, constant lr 1e-2 (its "
        "default); decay 0.01",
        _momo,
        DECAY_ONLY,
        needs="momo",
        lr=1e-2,
    ),
    Method(
        "schedule-free+",
        "ScheduleFree+ (arXiv 2605.19095), implemented here from its algorithm, with the loss reported, "
        "warm-up over 5 %, evaluated at the averaged weights; no lr, decay 0 (the authors' default)",
        _schedule_free_plus,
        DECAY_ONLY,
        lr=1.0,
        decay=0.0,
    ),
]
"""All of them except Prodigy and Schedule-Free, which the sweeps also have."""
