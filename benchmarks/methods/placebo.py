"""Placebos for feedback: the scales of another run, and random scales."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from thermoopt import autotune
from thermoopt.account.reading import Reading
from thermoopt.benchmarks.methods.base import Job, Method, Setup
from thermoopt.benchmarks.methods.ours import FREE, controlled
from thermoopt.controllers import (
    Action,
    Barostat,
    Bounds,
    Chain,
    Controller,
    Cooling,
    Lever,
    Recorder,
    Replay,
    Scales,
)

__all__ = ["OFFSET", "PLACEBOS", "RandomGain"]

OFFSET = 1000
"""From a run's seed to that of the run whose trajectory it replays: no sweep has as many seeds."""

GAIN = 4.0
"""Largest random factor, up and down: that of ``respect_lr``, whose placebo it is."""

DRAWS = 20
"""Draws in a run; at the slew limit below, a factor of 4 takes 1.4 % of it."""

EFOLDS = 100.0
"""A factor may change by e in T/100 steps: a thermostat's slew limit."""


class RandomGain(Controller):
    r"""Moves lr_scale to a new random value every twentieth of the run.

    .. math:: \ln f \sim U(-\ln 4, \ln 4)

    so the geometric mean is 1, approached at a thermostat's slew limit. Each draw depends on the seed and
    its number alone, so a resumed run draws the same.

    Args:
        seed: of the draws.
        total_steps: length of the run.
    """

    def __init__(self, seed: int, total_steps: int) -> None:
        self._seed, self._total_steps = seed, total_steps
        slew = math.exp(EFOLDS / max(total_steps, EFOLDS))
        self._bounds = Bounds(1 / GAIN, GAIN, slew, slew, min_readings=0)
        self.reset()

    def reset(self) -> None:
        """Start over."""
        self._lever, self._drawn = Lever(self._bounds), 0
        self._log: list[Action] = []

    def update(self, reading: Reading | None, step: int) -> Scales:
        """Return the factor of the coming step; readings are ignored."""
        number = 1 + (step - 1) * DRAWS // self._total_steps
        if number != self._drawn:
            self._drawn = number
            factor = GAIN ** random.Random(f"{self._seed} {number}").uniform(-1, 1)
            action = self._lever.aim(
                factor,
                step,
                controller="RandomGain",
                group="all",
                kind="lr",
                evidence={},
                reason=f"draw {number}",
            )
            self._log += [] if action is None else [action]
        return Scales(lr=self._lever.move())

    @property
    def log(self) -> list[Action]:
        """Every draw so far."""
        return list(self._log)

    def state_dict(self) -> dict[str, Any]:
        """Return the lever, the number of the last draw, the log."""
        log = [action.to_dict() for action in self._log]
        return {"lever": self._lever.state_dict(), "drawn": self._drawn, "log": log}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.reset()
        self._lever.load_state_dict(state["lever"])
        self._drawn = int(state["drawn"])
        self._log = [Action.from_dict(saved) for saved in state["log"]]


def _random_gain(job: Job) -> Setup:
    gain = RandomGain(job.seed, job.steps)
    return controlled(job, Chain(gain, Barostat(), Cooling(job.steps, "linear")))


def _replay(job: Job) -> Setup:
    """Run autotune on the workload with another seed, then replay its scales on this one.

    A rehearsal that diverges ends there; its last scales hold for the rest.
    """
    if job.another is None:
        raise ValueError("another must be the workload's build with method 'replay', got None")
    recorder = Recorder(autotune(job.steps))
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(job.seed + OFFSET)  # what dropout draws from
        task = job.another(job.seed + OFFSET)
        optimizer = controlled(replace(job, model=task.model), recorder).optimizer
        steps = 0
        while steps < job.steps:
            loss = task.loss()
            if not math.isfinite(loss.item()):
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
    return replace(controlled(job, Replay(recorder)), extra_steps=steps)


PLACEBOS = [
    Method(
        "replay",
        f"the scales that autotune set on the same workload with seed + {OFFSET} (a run that is also paid "
        "for), played back whatever happens; no lr, decay 0.01",
        _replay,
        FREE,
    ),
    Method(
        "random gain",
        "respect_lr with chance in place of its thermostat: a new random factor on lr within 4 every "
        "twentieth of the run, warm-up over 5 %, then linear to zero; lr 1e-3, decay 0.01",
        _random_gain,
    ),
]
"""The placebos, which feedback has to beat."""
