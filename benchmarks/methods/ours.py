"""This project's optimizer, controllers and scheduler, whole and in parts.

ThermoAdamW without ``fused`` takes its default backend: the one-pass kernel on CPU, torch's step elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from thermoopt import ThermoAdamW, ThermoScheduler, autotune, make_param_groups
from thermoopt.benchmarks.methods.base import Job, Method, Setup
from thermoopt.benchmarks.methods.baselines import SGD_DECAY, SGD_LR, adamw, sgd
from thermoopt.benchmarks.methods.schedules import linear, scheduled
from thermoopt.controllers import Barostat, Chain, Controller, Cooling, Thermostat

__all__ = ["LAWS", "OURS", "controlled"]


def controlled(job: Job, controller: Controller) -> Setup:
    """ThermoAdamW with a controller that brings warm-up and cooling."""
    optimizer = ThermoAdamW(
        job.model.named_parameters(), job.lr, weight_decay=job.decay, controller=controller
    )
    return Setup(optimizer, report=optimizer.report_loss)


def _with(controller: Callable[[Job], Controller]) -> Callable[[Job], Setup]:
    return lambda job: controlled(job, controller(job))


def _law(name: str) -> Callable[[Job], Controller]:
    """A law alone with warm-up and linear cooling."""
    return lambda job: Chain(Thermostat(name, total_steps=job.steps), Cooling(job.steps, "linear"))


def _no_barostat(job: Job) -> Controller:
    thermostat, _, cooling = autotune(job.steps).controllers
    return Chain(thermostat, cooling)


def _global(job: Job) -> Controller:
    _, barostat, cooling = autotune(job.steps).controllers
    return Chain(Thermostat(total_steps=job.steps, layers=False), barostat, cooling)


def _per_group(job: Job) -> Setup:
    _, barostat, cooling = autotune(job.steps).controllers
    controller = Chain(Thermostat(total_steps=job.steps, per="group"), barostat, cooling)
    groups = make_param_groups(job.model, job.lr, job.decay)
    optimizer = ThermoAdamW(groups, job.lr, controller=controller)
    return Setup(optimizer, report=optimizer.report_loss)


def _monitor(fused: bool | None) -> Callable[[Job], Setup]:
    def make(job: Job) -> Setup:
        optimizer = ThermoAdamW(job.model.named_parameters(), job.lr, weight_decay=job.decay, fused=fused)
        return Setup(optimizer, scheduled(optimizer, linear, job))

    return make


def _decay_only(job: Job) -> Setup:
    optimizer = ThermoAdamW(
        job.model.named_parameters(), job.lr, weight_decay=job.decay, controller=Barostat()
    )
    return Setup(optimizer, scheduled(optimizer, linear, job))


def _scheduler(optimizer: Callable[[Job], torch.optim.Optimizer], auto: bool) -> Callable[[Job], Setup]:
    def make(job: Job) -> Setup:
        made = optimizer(job)
        if auto:
            controller = autotune(job.steps)
            return Setup(made, ThermoScheduler(made, job.steps, shape="constant", controller=controller))
        return Setup(made, ThermoScheduler(made, job.steps, job.warmup, "linear"))

    return make


FREE = ("decay",)
"""Tunables of a method that needs no lr."""

OURS = [
    Method(
        "monitor",
        "ThermoAdamW on torch's fused step, measuring only, warm-up over 5 %, then linear to zero: the same "
        "bits as adamw linear; lr 1e-3, decay 0.01",
        _monitor(True),
    ),
    Method(
        "monitor native",
        "ThermoAdamW on its own kernel, measuring only, warm-up over 5 %, then linear to zero: the same as "
        "adamw linear up to rounding; lr 1e-3, decay 0.01",
        _monitor(None),
    ),
    Method(
        "autotune",
        "ThermoAdamW with autotune: no lr, its own warm-up over 10 %, held for half of the rest, then linear "
        "to zero; decay 0.01",
        _with(lambda job: autotune(job.steps)),
        FREE,
    ),
    Method(
        "respect_lr",
        "ThermoAdamW with autotune that stays within a factor of 4 of lr; lr 1e-3, decay 0.01",
        _with(lambda job: autotune(job.steps, "respect_lr")),
    ),
    Method(
        "lr only",
        "autotune without its barostat, so that decay stays as given; no lr, decay 0.01",
        _with(_no_barostat),
        FREE,
    ),
    Method(
        "decay only",
        "autotune's barostat alone on ThermoAdamW, warm-up over 5 %, then linear to zero; lr 1e-3, decay "
        "0.01",
        _decay_only,
    ),
    Method(
        "per group",
        "autotune with a separate rate for every module that holds parameters, where autotune has one for "
        "all; no lr, decay 0.01",
        _per_group,
        FREE,
    ),
    Method(
        "global",
        "autotune with one lr for all layers, where autotune has one in units of each layer's size; no lr, "
        "decay 0.01",
        _with(_global),
        FREE,
    ),
    Method(
        "scheduler adamw",
        "torch's fused AdamW with ThermoScheduler as a plain schedule, warm-up over 5 %, then linear to "
        "zero; lr 1e-3, decay 0.01",
        _scheduler(adamw, False),
    ),
    Method(
        "scheduler adamw autotune",
        "torch's fused AdamW, one group, with ThermoScheduler and autotune; no lr, decay 0.01",
        _scheduler(adamw, True),
        FREE,
    ),
    Method(
        "scheduler sgd",
        "torch's fused SGD, momentum 0.9, with ThermoScheduler as a plain schedule, warm-up over 5 %, then "
        "linear to zero; lr 0.1, coupled decay 5e-4",
        _scheduler(sgd, False),
        lr=SGD_LR,
        decay=SGD_DECAY,
    ),
    Method(
        "scheduler sgd autotune",
        "torch's fused SGD, momentum 0.9, one group, with ThermoScheduler and autotune; no lr (1e-3 until "
        "the first reading), coupled decay 5e-4",
        _scheduler(sgd, True),
        FREE,
        decay=SGD_DECAY,
    ),
]
"""All methods of this project, except those compared with a run of their own."""

_ALONE = "law alone on ThermoAdamW, with its own warm-up over 5 %, then linear to zero"

LAWS = {
    **{
        f"law {name}": Method(
            f"law {name}", f"the {name} {_ALONE}; no lr, decay 0.01", _with(_law(name)), FREE
        )
        for name in ("diffusion", "angular", "distance", "polyak")
    },
    "law coherence": Method(  # a brake on the given lr
        "law coherence", f"the coherence {_ALONE}; lr 1e-3, decay 0.01", _with(_law("coherence"))
    ),
}
"""The laws of the control benchmark, not of the sweeps (where ``law diffusion`` is called ``lr only``)."""
