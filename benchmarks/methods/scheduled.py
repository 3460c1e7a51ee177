"""Rates for optimizers other than Adam's, tuned and by ThermoScheduler; runs without a known length."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from thermoopt import ThermoScheduler, autotune
from thermoopt.benchmarks.methods.base import Job, Method, Setup
from thermoopt.benchmarks.methods.baselines import SGD_DECAY, SGD_LR, sgd
from thermoopt.benchmarks.methods.lion import Lion
from thermoopt.benchmarks.methods.ours import FREE, controlled
from thermoopt.benchmarks.methods.schedules import TAIL, linear, scheduled

__all__ = ["LION_DECAY", "SCHEDULED", "hidden_matrices"]

LION_DECAY = 0.1
"""Lion's weight decay: ten times AdamW's, since its rate is a tenth (arXiv 2302.06675, section 5)."""

Schedule = Callable[[torch.optim.Optimizer, Job], torch.optim.lr_scheduler.LRScheduler]


def _linear(optimizer: torch.optim.Optimizer, job: Job) -> torch.optim.lr_scheduler.LRScheduler:
    return scheduled(optimizer, linear, job)


def _autotuned(optimizer: torch.optim.Optimizer, job: Job) -> torch.optim.lr_scheduler.LRScheduler:
    return ThermoScheduler(optimizer, job.steps, shape="constant", controller=autotune(job.steps))


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the matrices that Muon is meant for: neither look-up tables nor the last one, the read-out."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in model.parameters() if p.ndim == 2 and p.requires_grad]
    return [p for p in matrices[:-1] if id(p) not in tables]


def _sgd(schedule: Schedule) -> Callable[[Job], Setup]:
    def make(job: Job) -> Setup:
        made = sgd(job)
        return Setup(made, schedule(made, job))

    return make


def _lion(schedule: Schedule) -> Callable[[Job], Setup]:
    def make(job: Job) -> Setup:
        made = Lion(job.model.parameters(), job.lr, weight_decay=job.decay)
        return Setup(made, schedule(made, job))

    return make


def _muon(schedule: Schedule) -> Callable[[Job], Setup]:
    """Muon for the hidden matrices; AdamW, each with a schedule of its own, for the rest."""

    def make(job: Job) -> Setup:
        matrices = hidden_matrices(job.model)
        held = {id(p) for p in matrices}
        rest = [p for p in job.model.parameters() if p.requires_grad and id(p) not in held]
        muon = torch.optim.Muon(matrices, job.lr, weight_decay=job.decay, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW(rest, job.lr, weight_decay=job.decay, fused=True)
        beside = schedule(adamw, job)

        def step_rest() -> None:
            adamw.step()
            beside.step()
            adamw.zero_grad()

        return Setup(muon, schedule(muon, job), after_step=step_rest)

    return make


def _anytime(job: Job) -> Setup:
    """Hold the rate; at four fifths of the run, be told that the last fifth begins."""
    controller = autotune()
    setup = controlled(job, controller)
    taken, quench = 0, max(1, round(TAIL * job.steps))

    def after_step() -> None:
        nonlocal taken
        taken += 1
        if taken == job.steps - quench:
            controller.cool_now(quench)

    return Setup(setup.optimizer, report=setup.report, after_step=after_step)


_THEN = "warm-up over 5 %, then linear to zero"

SCHEDULED = {
    m.name: m
    for m in (
        Method(
            "sgd linear",
            f"torch's fused SGD, momentum 0.9, {_THEN}; lr 0.1, coupled decay 5e-4",
            _sgd(_linear),
            lr=SGD_LR,
            decay=SGD_DECAY,
        ),
        Method(
            "lion linear",
            f"Lion, implemented here from its algorithm, betas 0.9 and 0.99, {_THEN}; lr 1e-4, decay 0.1",
            _lion(_linear),
            lr=1e-4,
            decay=LION_DECAY,
        ),
        Method(
            "scheduler lion autotune",
            "Lion, one group, with ThermoScheduler and autotune; no lr (1e-4 until the first reading), "
            "decay 0.1",
            _lion(_autotuned),
            FREE,
            lr=1e-4,
            decay=LION_DECAY,
        ),
        Method(
            "muon linear",
            "torch's Muon for the hidden matrices, with updates scaled to AdamW's size, and torch's fused "
            f"AdamW for the rest, both at the same lr, {_THEN}; lr 1e-3, decay 0.01",
            _muon(_linear),
        ),
        Method(
            "scheduler muon autotune",
            "the same two optimizers, each with its own ThermoScheduler and autotune; no lr (1e-3 until the "
            "first reading), decay 0.01",
            _muon(_autotuned),
            FREE,
        ),
        Method(
            "autotune anytime",
            "ThermoAdamW with autotune that is not given the length of the run, but is told to cool when a "
            "fifth of the run is left; no lr, decay 0.01",
            _anytime,
            FREE,
        ),
    )
}
"""Methods of `families schedulers`, not of the sweeps (which have ``scheduler sgd autotune``)."""
