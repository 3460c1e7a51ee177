"""Schedulers of other packages that read the loss or gradients."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, ReduceLROnPlateau

from thermoopt.benchmarks.methods.base import Job, Method, Setup
from thermoopt.benchmarks.methods.baselines import adamw

__all__ = ["FEEDBACK"]

WINDOWS = 50
"""Parts of a run that stand for ReduceLROnPlateau's epochs: its patience of 10 is a fifth of the run, and
its input is a mean of steps/50 losses."""

GREEDY_MIN, GREEDY_MAX = 0.01, 10.0
"""Bounds of GreedyLR's lr over the given lr: its defaults, 1e-3 and 1, at the 0.1 of its own example.
Unscaled they would exclude every lr that suits Adam."""

GREEDY_WINDOW = 50
"""Length of GreedyLR's own streaming average in steps: its default."""


class _ByLoss(Protocol):
    """A scheduler that is stepped with a loss."""

    def step(self, metrics: float, /) -> Any:
        """Step with a loss."""


class _Loop:
    """Steps a scheduler with the mean training loss of every ``window`` steps, once warm-up is over.

    Neither scheduler gets a validation loss: validations would cost steps that other methods do not spend.
    """

    def __init__(self, scheduler: _ByLoss, warmup: int, window: int) -> None:
        self._scheduler, self._warmup, self._window = scheduler, warmup, window
        self._step = 0
        self._losses: list[float] = []

    def report(self, loss: Tensor) -> None:
        """Record the loss of the coming step."""
        if self._step >= self._warmup:
            self._losses.append(float(loss.detach()))

    def after_step(self) -> None:
        """Count, and step the scheduler at the end of a window."""
        self._step += 1
        if len(self._losses) >= self._window:
            self._scheduler.step(sum(self._losses) / len(self._losses))
            self._losses.clear()


def _looped(optimizer: Optimizer, scheduler: _ByLoss, job: Job, window: int) -> Setup:
    """Warm up by torch's LinearLR, which leaves lr alone once it is over."""
    loop = _Loop(scheduler, job.warmup, window)
    warm = LinearLR(optimizer, start_factor=1 / job.warmup, total_iters=job.warmup - 1)
    return Setup(optimizer, warm, report=loop.report, after_step=loop.after_step)


def _plateau(job: Job) -> Setup:
    optimizer = adamw(job)
    return _looped(optimizer, ReduceLROnPlateau(optimizer), job, max(1, round(job.steps / WINDOWS)))


def _greedy(job: Job) -> Setup:
    from transformers.optimization import GreedyLR

    optimizer = adamw(job)
    scheduler = GreedyLR(
        optimizer,
        smooth=True,
        window_size=GREEDY_WINDOW,
        min_lr=GREEDY_MIN * job.lr,
        max_lr=GREEDY_MAX * job.lr,
    )
    return _looped(optimizer, scheduler, job, 1)


def _thermoclaw(job: Job) -> Setup:
    from thermoclaw.scheduler import ThermoScheduler

    optimizer = adamw(job)
    return Setup(optimizer, ThermoScheduler(optimizer, total_steps=job.steps, warmup_steps=job.warmup))


FEEDBACK = [
    Method(
        "greedylr",
        "torch's fused AdamW, warm-up over 5 %, then transformers' GreedyLR stepped with every training "
        "loss, with its own average over 50, factor 0.95, patience 10, between lr/100 and 10 lr; lr 1e-3, "
        "decay 0.01",
        _greedy,
        needs="transformers",
    ),
    Method(
        "reduce-on-plateau",
        "torch's fused AdamW, warm-up over 5 %, then torch's ReduceLROnPlateau (factor 0.1, patience 10) "
        "stepped with the mean training loss of every fiftieth of the run; lr 1e-3, decay 0.01",
        _plateau,
    ),
    Method(
        "thermoclaw",
        "torch's fused AdamW with thermoclaw's ThermoScheduler: its warm-up over 5 %, its cosine and its "
        "feedback of 5 %; lr 1e-3, decay 0.01",
        _thermoclaw,
        needs="thermoclaw",
    ),
]
"""Every baseline whose schedule reads the run."""
