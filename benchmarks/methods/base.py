"""The definition of a method: its name, its tunables, and how it makes an optimizer and a schedule."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from thermoopt.benchmarks.workloads import Task

__all__ = ["DECAY", "LR", "WARMUP", "Another", "Job", "Method", "Point", "Setup"]

WARMUP = 0.05
"""Share of the run that warm-up takes, unless a method's authors say otherwise: as in this project's
measurements of laws."""

LR, DECAY = 1e-3, 0.01
"""Learning rate and weight decay of torch's AdamW unless told."""

Another = Callable[[int], "Task"]
"""Makes the same workload's task of another seed (``Workload.build``)."""

EXTRAS = {
    "dadaptation": "bench",
    "momo": "bench",
    "prodigyopt": "bench",
    "schedulefree": "bench",
    "transformers": "hf",
}
"""Which extra of this package brings a module that methods need."""

PACKAGES = {"momo": "momo-opt"}
"""Name of a module on PyPI, if it differs."""


@dataclass(frozen=True)
class Point:
    """The point of its search space at which a method is run.

    Attributes:
        lr: learning rate, above 0; None is the method's default.
        decay: weight decay, from 0; None is the method's default.

    Raises:
        ValueError: for values out of range; the message names the argument.
    """

    lr: float | None = None
    decay: float | None = None

    def __post_init__(self) -> None:
        """Check both."""
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be None or a finite number > 0, got {self.lr!r}")
        if self.decay is not None and not 0 <= self.decay < math.inf:
            raise ValueError(f"decay must be None or a finite number >= 0, got {self.decay!r}")


@dataclass(frozen=True)
class Job:
    """What a method is made for: a point with defaults filled in, and a run.

    Attributes:
        model: to train.
        lr, decay: learning rate and weight decay.
        steps: length of the run in optimizer steps.
        seed: of the run, for methods that draw random numbers.
        another: makes the workload's task with another seed; None if unknown.
    """

    model: nn.Module
    lr: float
    decay: float
    steps: int
    seed: int
    another: Another | None

    @property
    def warmup(self) -> int:
        """Steps of warm-up, at least one."""
        return max(1, round(WARMUP * self.steps))


@dataclass(frozen=True)
class Setup:
    """The optimizer and schedule of a run, with the calls it must make.

    A step: ``report(loss)``, ``optimizer.zero_grad()`` and backward in any order before the step;
    ``optimizer.step()``; ``schedule.step()`` if there is one; ``after_step()``. Gradients stay until then (a
    schedule may read them). Whenever the model is judged: ``before_judging()``, evaluation,
    ``after_judging()``; the trajectory is the same bit for bit, however often that happens.

    Attributes:
        optimizer: stepped once per batch.
        schedule: stepped after it; None where the optimizer or ``after_step`` does it.
        before_judging, after_judging: called around every validation.
        report: called with the training loss before the step.
        after_step: called last.
        extra_steps: optimizer steps of an extra run that making this took, which count as its cost.
    """

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    before_judging: Callable[[], Any] = lambda: None
    after_judging: Callable[[], Any] = lambda: None
    report: Callable[[Tensor], Any] = lambda loss: None
    after_step: Callable[[], Any] = lambda: None
    extra_steps: int = 0


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        name: its name in tables, in lower case.
        about: a sentence that describes it, with its defaults.
        make: makes the set-up of a job.
        tunables: of ``"lr"`` and ``"decay"``, what a sweep may choose; the rest of a point is ignored.
        needs: module it needs beyond torch and thermoopt, or None.
        lr, decay: defaults.

    Raises:
        ValueError: if ``tunables`` holds something else.
    """

    name: str
    about: str
    make: Callable[[Job], Setup]
    tunables: tuple[str, ...] = ("lr", "decay")
    needs: str | None = None
    lr: float = LR
    decay: float = DECAY

    def __post_init__(self) -> None:
        """Check what may be tuned."""
        if not set(self.tunables) <= {"lr", "decay"}:
            raise ValueError(f"tunables must be 'lr' or 'decay', got {self.tunables!r}")

    def build(
        self, model: nn.Module, point: Point, steps: int, seed: int, another: Another | None = None
    ) -> Setup:
        """Make optimizer and schedule. torch's global random state is as before.

        Args:
            model: freshly initialised.
            point: of its search space; values that are not among the tunables are ignored.
            steps: length of the run in optimizer steps, from 1.
            seed: of the run.
            another: the workload's ``build``; ``replay`` needs it, and trains one more run with it.

        Raises:
            ImportError: if the package it needs is missing; the message names it and the extra.
            ValueError: for ``steps`` out of range, and for ``replay`` without ``another``.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be an integer >= 1, got {steps!r}")
        if self.needs is not None and importlib.util.find_spec(self.needs) is None:
            extra = EXTRAS.get(self.needs)
            also = f" (or thermoopt[{extra}])" if extra else " (it is in no extra of thermoopt)"
            package = PACKAGES.get(self.needs, self.needs)
            raise ImportError(
                f"method {self.name!r} needs {package}, which is not installed: pip install {package}{also}"
            )
        lr = point.lr if "lr" in self.tunables and point.lr is not None else self.lr
        decay = point.decay if "decay" in self.tunables and point.decay is not None else self.decay
        return self.make(Job(model, lr, decay, steps, seed, another))
