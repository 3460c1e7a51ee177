"""Runs of benchmark methods that can be looked at on the way."""

import pytest
import torch

from thermoopt.benchmarks.methods import METHODS, Point
from thermoopt.benchmarks.workloads import WORKLOADS

STEPS, WARM = 200, 10
"""Length of the runs in which schedules are looked at, and its warm-up."""


def wanted(name):
    """A method whose package is there."""
    if METHODS[name].needs:
        pytest.importorskip(METHODS[name].needs)
    return METHODS[name]


class Run:
    """A run that can be looked at on the way."""

    def __init__(self, name, workload="linear", steps=60, lr=None, decay=None, seed=0):
        self.task = WORKLOADS[workload].build(seed)
        build = WORKLOADS[workload].build
        self.initial = self.task.evaluate()
        self.setup = wanted(name).build(self.task.model, Point(lr, decay), steps, seed, build)
        self.steps, self.lrs, self.losses = steps, [], []

    @property
    def group(self):
        return self.setup.optimizer.param_groups[0]

    @property
    def params(self):
        return [p.detach().clone() for p in self.task.model.parameters()]

    def step(self, loss=None):
        """One step; ``loss`` is what the method is told instead of the truth."""
        true = self.task.loss()
        self.setup.optimizer.zero_grad()
        true.backward()
        self.setup.report(true if loss is None else torch.tensor(loss))
        self.lrs.append(float(self.group["lr"]))
        self.setup.optimizer.step()
        if self.setup.schedule is not None:
            self.setup.schedule.step()
        self.setup.after_step()
        self.losses.append(true.item())

    def judge(self):
        self.setup.before_judging()
        loss = self.task.evaluate()
        self.setup.after_judging()
        return loss

    def go(self, judge_every=0):
        for n in range(self.steps):
            self.step()
            if judge_every and n % judge_every == 0:
                self.judge()
        return self


def scales(run):
    """What each group of a ThermoAdamW is scaled by: lr, decay, layers."""
    thermo = [group["thermo"] for group in run.setup.optimizer.param_groups]
    return [(t["lr_scale"], t["wd_scale"], t["layer_factors"].tolist()) for t in thermo]


def rising(shape):
    """Closed form over a run: warm-up, then a function of the step."""
    return lambda n: (n + 1) / WARM if n < WARM else shape(n)


def share(n):
    return (n - WARM) / (STEPS - WARM)
